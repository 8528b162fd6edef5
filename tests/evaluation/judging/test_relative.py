"""Relative scores are ratios of means, runs have means and spreads, and unread verdicts are counted, never averaged."""

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
    """Make a verdict: scores of the reference and the answer."""
    failure = "" if scores else "empty reply"
    return Verdict(id=name, category=category, scores=scores, order=order, failure=failure)


def test_a_relative_score_is_a_ratio_of_means() -> None:
    """Worked by hand: (2 + 6) / (4 + 10) = 57.1, where the mean of the ratios 0.5 and 0.6 would be 55.0."""
    given = [verdict("1", (4, 2)), verdict("2", (10, 6)), verdict("3", (8, 10), "detail")]
    score = average_runs([relative_scores(given)], "overall")
    assert score.metrics["conv"] == 57.1
    assert score.metrics["detail"] == 125.0
    assert score.metrics["overall"] == 81.8  # 18 / 22
    assert score.overall == pytest.approx(18 / 22)
    assert score.metrics["reference"] == {"overall": 73.3, "conv": 70.0, "detail": 80.0}
    assert score.metrics["candidate"] == {"overall": 60.0, "conv": 40.0, "detail": 100.0}
    assert score.counts == {"conv": 2, "detail": 1}


def test_an_unread_verdict_is_left_out_and_counted() -> None:
    """The scores are those of the others; one of two hundred may be unread, three may not."""
    good = [verdict(str(at), (8, 4)) for at in range(197)]
    one = relative_scores([*good, verdict("x", ()), verdict("y", (8, 4)), verdict("z", (8, 4))])
    assert one.metrics["overall"] == 50
    assert (one.metrics["num_valid"], one.metrics["num_invalid"], one.metrics["valid"]) == (
        199,
        1,
        True,
    )
    assert one.unparsed == {"x": "empty reply"}
    check_valid(one.metrics)
    three = relative_scores([*good, *(verdict(name, ()) for name in "xyz")])
    assert three.metrics["overall"] == 50
    assert three.metrics["valid"] is False
    with pytest.raises(
        EvaluationError,
        match=r"3 of 200 items have no usable verdict \(3 empty reply\), over the 1%",
    ) as invalid:
        check_valid(three.metrics)
    assert invalid.value.exit_code == 6


@pytest.mark.parametrize(("unread", "valid"), [(0, True), (1, True), (2, False)])
def test_one_percent_itself_is_allowed(unread: int, *, valid: bool) -> None:
    """Of a hundred, one is not over one percent, two are."""
    given = [verdict(str(at), () if at < unread else (8, 4)) for at in range(100)]
    assert relative_scores(given).metrics["valid"] is valid


def test_nothing_read_is_no_score() -> None:
    """Without one verdict there is no figure, and the run is not valid."""
    score = average_runs([relative_scores([verdict("1", ())])], "overall")
    assert "overall" not in score.metrics
    assert score.metrics["valid"] is False


def test_both_orders_count_once_and_tell_how_far_they_agree() -> None:
    """Worked by hand: a judge that gives the first shown more, but for one answer that is better in either place."""
    given = [
        verdict("steady", (4, 8)), verdict("steady", (6, 8), order="candidate first"),
        verdict("swayed", (9, 7)), verdict("swayed", (7, 9), order="candidate first"),
        verdict("even", (6, 6)), verdict("even", (6, 6), order="candidate first"),
        verdict("nearly", (6, 6)), verdict("nearly", (8, 6), order="candidate first"),
    ]  # fmt: skip
    score = relative_scores(given)
    assert score.metrics["overall"] == pytest.approx(100 * (8 + 8 + 6 + 6) / (5 + 8 + 6 + 7))
    assert score.metrics["agreement"] == 50  # steady, even
    assert score.metrics["first_preferred"] == 60  # 3 of 5 that are no tie
    assert [score.metrics[name] for name in ("win", "tie", "loss")] == [1, 2, 1]
    half = relative_scores([verdict("a", (4, 8)), verdict("a", (), order="candidate first")])
    assert half.unparsed == {"a": "empty reply"}
    assert half.metrics["num_invalid"] == 1


def test_the_interval_is_that_of_the_ratio() -> None:
    """No spread where all ratios are equal; else it holds the score, and more answers make it narrower."""
    alike = [verdict(str(at), (2 * at, at)) for at in range(1, 6)]
    assert relative_scores(alike).metrics["interval_95"] == pytest.approx({"low": 50, "high": 50})
    few = [verdict(str(at), (8, 2 + at % 5)) for at in range(10)]
    many = [verdict(str(at), (8, 2 + at % 5)) for at in range(1000)]
    (low, high), (nearer_low, nearer_high) = (
        relative_scores(given).metrics["interval_95"].values() for given in (few, many)
    )
    assert low < nearer_low < 50 < nearer_high < high
    assert high - low == pytest.approx(10 * (nearer_high - nearer_low), rel=0.1)
    # a mean of ten draws of sd sqrt(2)/8 = 0.177: 1.96 * 0.177 / sqrt(10) = 0.11 on either side
    assert high - low == pytest.approx(22, abs=1.5)


def test_runs_have_a_mean_and_a_spread() -> None:
    """Means of the runs' own figures, the standard deviation over the runs, counts as sums."""
    runs = [relative_scores([verdict("1", (10, value))]) for value in (5, 7, 9)]
    figures = average_runs(runs, "overall").metrics
    assert figures["overall"] == 70
    assert figures["std"]["overall"] == 16.3  # sqrt(800 / 3)
    assert figures["runs"] == [50, 70, 90]
    assert figures["num_valid"] == 3
