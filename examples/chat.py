"""Chat with a model folder from Python: one question, a streamed answer, a conversation, a batch.

python examples/chat.py runs/demo/model runs/demo/scenes/held_out/held_out/000001.jpg
"""

import sys

import caldera


def main(folder: str, image: str) -> None:
    """Ask about an image in four ways."""
    with caldera.load(folder) as model:
        print(model.chat("What is in the image?", image, max_new_tokens=40))

        for text in model.stream(
            "Describe the image.", image, temperature=0.7, seed=3, max_new_tokens=60
        ):
            print(text, end="", flush=True)
        print()

        conversation = model.start_conversation(image, max_new_tokens=20)
        for question in ("Do you see a dog?", "What is the place?"):
            print(question, "".join(conversation.ask(question)))

        questions = [("Do you see a cat?", image), ("How many dogs are there?", image)]
        print(model.chat_batch(questions, max_new_tokens=10))


if __name__ == "__main__":
    main(*sys.argv[1:])
