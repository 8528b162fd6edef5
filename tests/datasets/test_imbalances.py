"""Statistics report answers that a model could learn blindly, and nothing that is chance."""

import random
import time
from collections.abc import Iterable

import pytest

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.datasets.imbalances import AnswerCounts, Imbalance
from caldera.instructions.request_phrases import LETTER_PROMPT, SHORT_ANSWER


def counted(exchanges: Iterable[tuple[str, str]], *, same_image: bool = False) -> list[Imbalance]:
    """Return the imbalances of exchanges, each about an image of its own unless it is one for all."""
    counts = AnswerCounts()
    for index, (question, answer) in enumerate(exchanges):
        image = ImageRef("0.jpg" if same_image else f"{index}.jpg")
        turns = (Turn("user", (image, f"\n{question}")), Turn("assistant", (answer,)))
        counts.add(Conversation(str(index), turns))
    return counts.imbalances()


@pytest.mark.parametrize(
    ("share", "is_reported"), [(0.5, False), (0.53, False), (0.4, True), (0.7, True)]
)
def test_a_share_of_yes_is_reported_if_it_is_no_chance(share: float, is_reported: bool) -> None:
    """Sentences and single words count; the request for a short answer is no part of the question."""
    answers = [
        ("Yes, there is one." if index % 2 else "yes") for index in range(round(1000 * share))
    ]
    answers += ["No."] * (1000 - len(answers))
    imbalances = counted(
        (f"Is there a thing {index}?\n{SHORT_ANSWER}", text) for index, text in enumerate(answers)
    )
    assert bool(imbalances) == is_reported
    if imbalances:
        assert f"yes {round(1000 * share)} ({share:.0%})" in imbalances[0].finding
        assert "add questions with the other answer" in imbalances[0].advice


def test_few_answers_are_no_evidence() -> None:
    """Eight of ten may be chance."""
    assert not counted((f"Is it a {index}?", "yes" if index < 8 else "no") for index in range(10))


@pytest.mark.parametrize(
    ("question", "first", "second"),
    [
        (
            "Is the dog to the left or to the right of the car?",
            "left",
            "The dog is to the right of the car.",
        ),
        ("Is the cup above or below the {}?", "It is above it.", "below"),
        ("Which picture has more cows, A or B?", "A", "Picture B has more: two against none."),
        ("Is it a cat or a dog {}?", "A cat.", "It is a dog."),
    ],
)
def test_the_place_of_the_right_option_is_counted(question: str, first: str, second: str) -> None:
    """Of two options the second one is right in 55 of 77 questions, as in data of this project once."""
    answers = [first] * 22 + [second] * 55
    imbalances = counted((question.format(index), answer) for index, answer in enumerate(answers))
    assert imbalances[0].finding == (
        "the answers to 77 questions 'A or B' are out of balance: first 22 (29%), second 55 (71%)"
    )
    balanced = counted((question.format(index), (first, second)[index % 2]) for index in range(77))
    assert not any("A or B" in item.finding for item in balanced)


@pytest.mark.parametrize(
    ("question", "first", "second"),
    [
        ("which is closer, the red car or the blue car?", "the red car", "The blue car."),
        ("Is the red car or the blue car closer?", "The red car is closer.", "the blue car"),
        ("Is the red car or the blue car closer?", "the red car", "The blue car is closer."),
        ("Is it thing 7 or item 7?", "thing 7", "item 7"),
        ("Thing 7 or item 7?", "Thing 7.", "Item 7."),
        ("Is it picture A or picture B?", "Picture A.", "Picture B."),
        ("A cat or a dog?", "A cat.", "A dog."),
        ("Is it a hot dog or a cold beer?", "A dog.", "A beer."),
        ("Is the man or the woman taller?", "The man is taller.", "The woman is taller."),
    ],
)
@pytest.mark.parametrize(("num_first", "num_second"), [(100, 100), (225, 75), (75, 225)])
def test_options_are_told_apart_by_the_words_that_differ(
    question: str, first: str, second: str, num_first: int, num_second: int
) -> None:
    """A word that both options share names neither of them; what is in balance is not reported."""
    exchanges = [(question, first)] * num_first + [(question, second)] * num_second
    findings = [item.finding for item in counted(exchanges) if "A or B" in item.finding]
    total = num_first + num_second
    assert findings == [
        f"the answers to {total} questions 'A or B' are out of balance: "
        f"first {num_first} ({num_first / total:.0%}), second {num_second} ({num_second / total:.0%})"
    ] * (num_first != num_second)


def test_unclear_answers_are_no_evidence() -> None:
    """Where the second option may go on ('the small truck'), answers with its further words can balance the first."""
    question = "Is it the car or the small truck?"
    exchanges = [(question, "the car"), (question, "the truck")] * 100
    assert not any("A or B" in item.finding for item in counted(exchanges))


def test_examples_of_repeated_questions_differ() -> None:
    """A question that is repeated about many images is one example."""
    exchanges = [("Which sport?", str(index)) for index in range(30)]
    exchanges += [("Which color?", str(index)) for index in range(30)]
    [imbalance] = counted(exchanges, same_image=True)
    assert imbalance.finding.count("'Which sport?'") == 1


@pytest.mark.parametrize("form", ["{}", "{}.", "({})", "The answer is {}.", "{}. a thing"])
def test_letters_are_counted_by_the_number_of_choices(form: str) -> None:
    """LLaVA's and ScienceQA's forms of answers; equal shares are right for any number of choices."""
    rng = random.Random(0)
    choices = "\nA. a thing\nB. another\nC. a third\n" + LETTER_PROMPT
    biased = [form.format("C" if rng.random() < 0.5 else rng.choice("AB")) for _ in range(400)]
    [imbalance] = counted((f"What is {index}?{choices}", text) for index, text in enumerate(biased))
    assert imbalance.finding.startswith(
        "the answers to 400 questions with 3 choices are out of balance: A "
    )
    assert imbalance.advice == "shuffle the choices of each question"
    equal = [form.format("ABC"[index % 3]) for index in range(400)]
    assert not counted((f"What is {index}?{choices}", text) for index, text in enumerate(equal))


def test_an_answer_that_dominates_a_question_is_reported() -> None:
    """'What sport is this?' is answered in the same way for 90 of 100 images."""
    answers = ["tennis"] * 90 + ["golf"] * 10
    [imbalance] = counted(("What sport is this?", answer) for answer in answers)
    assert imbalance.finding == (
        "1 repeated question is nearly always answered alike: "
        "'what sport is this?' is answered 'tennis' 90 of 100 times"
    )
    assert not counted(("What sport is this?", answer) for answer in answers[80:])


def test_questions_in_other_words_about_one_image_are_reported() -> None:
    """'Where is the cat?' and 'In which part of the picture is the cat?' are one question, about one image."""
    wordings = (
        "Where is the {}?",
        "In which part of the picture is the {}?",
        "How many {}s are there?",
    )
    names = [f"thing{index}" for index in range(20)]
    exchanges = [(text.format(name), "left") for name in names for text in wordings]
    [imbalance] = counted(exchanges, same_image=True)
    assert imbalance.finding.startswith(
        "20 of 60 questions repeat another one about the same image"
    )
    assert "'In which part of the picture is the thing0?'" in imbalance.finding
    assert not counted(exchanges)


def test_relations_are_different_questions() -> None:
    """Left of, right of and above are told apart."""
    words = ("to the left of", "to the right of", "above", "below")
    exchanges = [
        (f"Is thing{index} {word} the cat?", "yes" if number % 2 else "no")
        for index in range(20)
        for number, word in enumerate(words)
    ]
    assert not counted(exchanges, same_image=True)


def test_a_frequent_long_answer_is_reported() -> None:
    """Refusals and boilerplate stand out among a thousand answers; `data balance` is named for captions."""
    answers = ["I am sorry, but I cannot help with that."] * 50
    answers += [f"The picture shows thing number {index} on a table." for index in range(950)]
    [imbalance] = counted((f"What is {index}?", text) for index, text in enumerate(answers))
    assert "50 x 'I am sorry, but I cannot help with that.'" in imbalance.finding
    assert "data balance" in imbalance.advice


def test_text_only_records_are_counted() -> None:
    """A record without images repeats no question about one."""
    counts = AnswerCounts()
    turns = (Turn("user", ("Why?",)), Turn("assistant", ("So.",)))
    for _ in range(30):
        counts.add(Conversation("x", turns))
    assert [item.finding[:19] for item in counts.imbalances()] == ["1 repeated question"]


@pytest.mark.parametrize("text", ["x", "a or ", "x_", '"', " ", "\n", "A.\n", "a-", "answer is "])
def test_long_texts_are_counted_in_linear_time(text: str) -> None:
    """Whatever is repeated, in a question or in an answer."""
    long_text = f"Cat{text * (20_000 // len(text))}."
    start = time.process_time()
    counted([(long_text, "Yes."), ("Is it a cat or a dog?", long_text)])
    assert time.process_time() - start < 0.5
