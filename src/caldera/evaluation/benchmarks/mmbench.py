"""MMBench in English and Chinese: choice questions that count only if right under every rotation of the choices.

Its table (.tsv) has `index`, `question`, `hint`, `A` to `D`, `answer`, `category` and `l2-category`. The rows of a
question are those whose indices agree up to multiples of 1,000,000, each with the choices moved on by one. Answers are
LLaVA's JSON lines, or the table that is handed in, with `index` and `prediction`. The authors let ChatGPT match an
answer that names no letter; here it is counted as unread, and wrong.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from caldera.datasets.science_qa import SENTENCE
from caldera.errors import InputError
from caldera.evaluation.benchmark import Item, Score
from caldera.evaluation.benchmarks.task import Sources, Task, scored_by
from caldera.evaluation.choice_letters import LETTERS
from caldera.evaluation.multiple_choice import ask_choice, letters_read, score_letters
from caldera.evaluation.official_files import each_once, need, read_rows
from caldera.evaluation.shares import marks_by_group, mean, percent

_ROTATION = 1_000_000
"""What the index of a row exceeds that of the same question with its choices one place further."""

_EMPTY = ("", "nan")
"""What stands in a cell without a choice or a hint."""

_SENTENCES = {"mmbench": SENTENCE, "mmbench_cn": "请直接回答选项字母。"}


@dataclass(frozen=True, slots=True)
class MmBench:
    """Rows; an item's form is the question that it is a rotation of, its kind the category of that question."""

    name: str
    items: Sequence[Item]
    max_new_tokens: int = 16

    def score(self, answers: Mapping[str, str]) -> Score:
        """Score questions that are right in all their rows; `vanilla` is the first row alone.

        Raises:
            InputError: Answers are missing, or belong to no row.
        """
        letters = letters_read(self.items, answers)
        rows = score_letters(self.items, letters)
        rotations: dict[str, list[float]] = defaultdict(list)
        for item in self.items:
            rotations[item.form].append(rows.marks[item.id])
        first = [item for item in self.items if item.id == item.form]
        marks = {item.id: min(rotations[item.id]) for item in first}
        groups = marks_by_group(first, marks)
        figures = {
            "accuracy": percent(mean(marks.values())),
            "vanilla": percent(mean(rows.marks[item.id] for item in first)),
        }
        figures |= {name: percent(mean(group.values())) for name, group in groups.items()}
        figures |= {
            "questions": len(first),
            "rows": len(self.items),
            "parse_failures": len(rows.unread),
        }
        return replace(
            rows,
            overall=mean(marks.values()),
            by_kind={name: mean(group.values()) for name, group in groups.items()},
            counts={name: len(group) for name, group in groups.items()},
            figures=figures,
            marks=marks,
        )


def _reader(name: str) -> Callable[[Sources], MmBench]:
    """Return what reads the table of one language."""

    def read(sources: Sources) -> MmBench:
        path = sources.questions or sources.need_truth("MMBench's table (.tsv)")
        rows = read_rows(path)
        for where, row in rows:
            need(row, ("index", "question", "A", "B", "answer"), where)
            if not row["index"].isdecimal():
                raise InputError(f"{where}: the index should be a number, got {row['index']!r}")
        each_once((row["index"] for _, row in rows), path)
        first = {row["index"]: row for _, row in rows if int(row["index"]) < _ROTATION}
        return MmBench(name, [_item(row, first, where, _SENTENCES[name]) for where, row in rows])

    return read


def _item(
    row: Mapping[str, str], first: Mapping[str, Mapping[str, str]], where: str, sentence: str
) -> Item:
    """Make an item of a row.

    Raises:
        InputError: Its question is not there, or its answer is none of the choices.
    """
    question = str(int(row["index"]) % _ROTATION)
    if question not in first:
        raise InputError(f"{where} is a rotation of question {question}, which is not there")
    choices = [row[letter] for letter in "ABCD" if row.get(letter, "") not in _EMPTY]
    if row["answer"] not in tuple(LETTERS[: len(choices)]):
        raise InputError(
            f"{where}: the answer should be one of {LETTERS[: len(choices)]}, got {row['answer']!r}; only splits "
            "with answers, such as dev, can be scored here"
        )
    hint = row.get("hint", "")
    text = row["question"] if hint in _EMPTY else f"{hint}\n{row['question']}"
    asked = ask_choice(row["index"], text, choices, [f"{question}.jpg"], sentence)
    kinds = first[question]
    coarse = kinds.get("l2-category", kinds.get("L2-category", ""))
    category = kinds.get("category", "question")
    slices = (coarse,) if coarse not in (*_EMPTY, category) else ()
    return Item(
        row["index"], category, question, asked, (row["answer"],), tuple(choices), slices, question
    )


def _task(name: str, language: str) -> Task:
    read = _reader(name)
    return Task(
        name=name,
        title=f"MMBench ({language})",
        measures=f"twenty abilities by choice, asked in {language}, right under every rotation of the choices",
        size="1,164 questions of dev in some 4,400 rows, by version (github.com/open-compass/MMBench)",
        chance={"vanilla": 25.0, "accuracy": 0.4},
        headline="accuracy",
        files="--questions mmbench_dev_*.tsv; answers as JSON lines, .tsv, or .xlsx where openpyxl is installed",
        read=read,
        score_files=scored_by(read),
    )


MMBENCH = _task("mmbench", "English")
MMBENCH_CN = _task("mmbench_cn", "Chinese")
