"""Score a file of answers to your own questions, without a model.

    python examples/score_answers.py questions.jsonl answers.jsonl

A question: {"id": "7", "image": "shelf.jpg", "question": "What is missing?", "answer": ["tea"], "match": "contains"}
An answer:  {"question_id": "7", "text": "The green tea is missing."}
"""

import json
import subprocess
import sys


def main(questions: str, answers: str) -> None:
    """Print the accuracy with its interval, and how many answers could not be parsed."""
    command = [
        "caldera",
        "evaluate",
        "score",
        "custom",
        "--questions",
        questions,
        "--answers",
        answers,
        "--json",
    ]
    result = subprocess.run(
        [sys.executable, "-m", *command], check=True, capture_output=True, text=True
    )
    print(json.dumps(json.loads(result.stdout), indent=2))


if __name__ == "__main__":
    main(*sys.argv[1:])
