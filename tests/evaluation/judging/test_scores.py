"""Relative scores as ratios of means, averages over runs, and unparsed verdicts, which are counted, never averaged."""

import pytest

from caldera.errors import EvaluationError
from caldera.evaluation.judging.protocols import AnswerOrder
from caldera.evaluation.judging.scores import average_runs, relative_scores
from caldera.evaluation.judging.verdicts import Verdict, check_valid


def verdict(
    name: str,
    scores: tuple[float, ...],
    category: str = "conv",
    order: AnswerOrder = "reference first",
) -> Verdict:
    """Return a verdict with scores of the reference and the answer."""
    failure = "" if scores else "empty reply"
    return Verdict(id=name, category=category, scores=scores, order=order, failure=failure)


def test_a_relative_score_is_a_ratio_of_means() -> None:
    """Worked by hand: (2 + 6) / (4 + 10) = 57.1, where the mean of the ratios 0.5 and 0.6 would be 55.0."""
    verdicts = [verdict("1", (4, 2)), verdict("2", (10, 6)), verdict("3", (8, 10), "detail")]
    score = average_runs([relative_scores(verdicts)], "overall")
    assert score.metrics["conv"] == 57.1
    assert score.metrics["detail"] == 125.0
    assert score.metrics["overall"] == 81.8  # 18 / 22
    assert score.overall == pytest.approx(18 / 22)
    assert score.metrics["reference"] == {"overall": 73.3, "conv": 70.0, "detail": 80.0}
    assert score.metrics["candidate"] == {"overall": 60.0, "conv": 40.0, "detail": 100.0}
    assert score.counts == {"conv": 2, "detail": 1}


def test_an_unparsed_verdict_is_skipped_and_counted() -> None:
    """The scores are those of the others; one of two hundred may be unparsed, three may not."""
    good = [verdict(str(number), (8, 4)) for number in range(197)]
    valid = relative_scores([*good, verdict("x", ()), verdict("y", (8, 4)), verdict("z", (8, 4))])
    assert valid.metrics["overall"] == 50
    assert (valid.metrics["num_valid"], valid.metrics["num_invalid"], valid.metrics["valid"]) == (
        199,
        1,
        True,
    )
    assert valid.unparsed == {"x": "empty reply"}
    check_valid(valid.metrics)
    invalid = relative_scores([*good, *(verdict(name, ()) for name in "xyz")])
    assert invalid.metrics["overall"] == 50
    assert invalid.metrics["valid"] is False
    with pytest.raises(
        EvaluationError,
        match=r"3 of 200 items have no usable verdict \(3 empty reply\), over the 1%",
    ) as caught:
        check_valid(invalid.metrics)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(("num_unparsed", "valid"), [(0, True), (1, True), (2, False)])
def test_one_percent_itself_is_allowed(num_unparsed: int, *, valid: bool) -> None:
    """One of a hundred is not over one percent, two are."""
    verdicts = [
        verdict(str(number), () if number < num_unparsed else (8, 4)) for number in range(100)
    ]
    assert relative_scores(verdicts).metrics["valid"] is valid


def test_without_verdicts_there_is_no_score() -> None:
    """There is no metric, and the run is not valid."""
    score = average_runs([relative_scores([verdict("1", ())])], "overall")
    assert "overall" not in score.metrics
    assert score.metrics["valid"] is False


def test_both_orders_count_once_and_their_agreement_is_measured() -> None:
    """Worked by hand: a judge that prefers the first answer, except for one that is better in both orders."""
    verdicts = [
        verdict("consistent", (4, 8)), verdict("consistent", (6, 8), order="candidate first"),
        verdict("biased", (9, 7)), verdict("biased", (7, 9), order="candidate first"),
        verdict("even", (6, 6)), verdict("even", (6, 6), order="candidate first"),
        verdict("nearly", (6, 6)), verdict("nearly", (8, 6), order="candidate first"),
    ]  # fmt: skip
    score = relative_scores(verdicts)
    assert score.metrics["overall"] == pytest.approx(100 * (8 + 8 + 6 + 6) / (5 + 8 + 6 + 7))
    assert score.metrics["agreement"] == 50  # consistent, even
    assert score.metrics["first_preferred"] == 60  # 3 of 5 without ties
    assert [score.metrics[name] for name in ("win", "tie", "loss")] == [1, 2, 1]
    incomplete = relative_scores([verdict("a", (4, 8)), verdict("a", (), order="candidate first")])
    assert incomplete.unparsed == {"a": "empty reply"}
    assert incomplete.metrics["num_invalid"] == 1


def test_the_interval_is_that_of_the_ratio() -> None:
    """It is a point if all ratios are equal; else it contains the score, and more answers make it narrower."""
    equal = [verdict(str(number), (2 * number, number)) for number in range(1, 6)]
    assert relative_scores(equal).metrics["interval_95"] == pytest.approx({"low": 50, "high": 50})
    few, many = (
        [verdict(str(number), (8, 2 + number % 5)) for number in range(count)]
        for count in (10, 1000)
    )
    (low, high), (nearer_low, nearer_high) = (
        relative_scores(verdicts).metrics["interval_95"].values() for verdicts in (few, many)
    )
    assert low < nearer_low < 50 < nearer_high < high
    assert high - low == pytest.approx(10 * (nearer_high - nearer_low), rel=0.1)
    # The mean of ten samples of standard deviation sqrt(2)/8 = 0.177: 1.96 * 0.177 / sqrt(10) = 0.11 on either side
    assert high - low == pytest.approx(22, abs=1.5)


def test_runs_have_a_mean_and_a_standard_deviation() -> None:
    """Metrics are means over the runs, `std` is their standard deviation, counts are sums."""
    runs = [relative_scores([verdict("1", (10, value))]) for value in (5, 7, 9)]
    metrics = average_runs(runs, "overall").metrics
    assert metrics["overall"] == 70
    assert metrics["std"]["overall"] == 16.3  # sqrt(800 / 3)
    assert metrics["runs"] == [50, 70, 90]
    assert metrics["num_valid"] == 3
