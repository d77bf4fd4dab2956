"""Differences of two methods: against scipy's paired test, McNemar's counts, and Holm's procedure
written down step by step."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats

from thesis_repro.files import BadInput
from thesis_repro.measures import Measurement, Planned
from thesis_repro.paired import (
    Gap,
    draw_gaps,
    gap,
    gap_of,
    gap_of_cells,
    holm,
    paired_error,
    verdict_of_many,
)


def test_the_gap_over_seeds_is_that_of_the_paired_test():
    a, b = np.array([3.0, 5.5, 4.0, 8.0]), np.array([2.5, 4.0, 4.5, 6.0])
    found, theirs = gap(a, b), scipy.stats.ttest_rel(a, b)
    ends = theirs.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(ends))
    assert found.value == pytest.approx((a - b).mean())
    assert (found.p, found.n, found.over) == (pytest.approx(theirs.pvalue), 4, "seeds")
    narrow = gap(a, b, level=0.5)
    assert found.low < narrow.low < narrow.high < found.high


def test_a_seed_that_one_of_them_lacks_is_left_out():
    nan = math.nan
    assert gap([1, 2, nan, 5], [0, nan, 1, 2]) == gap([1, 5], [0, 2])
    assert gap([1, 2, nan], [0, 1, 7], error=0.1).n == 2  # two equal differences: no spread
    assert math.isnan(gap([1, 2], [0, 1]).low) and gap([1, 2], [0, 1]).value == 1


def test_of_one_seed_the_interval_is_over_images():
    found = gap([3.0], [1.0], error=0.5)
    assert (found.low, found.high) == pytest.approx((2 - 1.959964 * 0.5, 2 + 1.959964 * 0.5))
    assert (found.n, found.over) == (1, "images")
    few = gap([3.0], [1.0], error=0.5, freedom=9)
    assert few.high == pytest.approx(2 + 2.262157 * 0.5)
    unknown = gap([3.0], [1.0])
    assert unknown.value == 2 and math.isnan(unknown.low) and math.isnan(unknown.p)


def test_without_a_run_there_is_no_difference():
    assert math.isnan(gap([], []).value) and gap([math.nan], [1.0]).n == 0


def test_a_difference_of_nothing_has_p_one():
    assert gap_of(0.0, 1.0).p == 1 and gap_of(0.0, 1.0).low == -gap_of(0.0, 1.0).high
    assert gap_of(-2.0, 1.0).p == gap_of(2.0, 1.0).p == pytest.approx(2 * scipy.stats.norm.sf(2))


def test_the_error_of_paired_answers_by_mcnemars_counts():
    rng = np.random.default_rng(1)
    ours, theirs = rng.random((300, 4)) < 0.8, rng.random((300, 4)) < 0.7
    b, c = (ours & ~theirs).sum(0), (theirs & ~ours).sum(0)
    variance = ((b + c) / 300 - (b - c) ** 2 / 300**2) / 300
    assert paired_error(ours, theirs) == pytest.approx(100 * np.sqrt(variance))
    assert paired_error(ours, ours).tolist() == [0] * 4


def by_steps(p, level):
    "Which of some hypotheses are rejected: Holm (1979), one after another."
    left, rejected = dict(enumerate(p)), set()
    while left and min(left.values()) < level / len(left):
        smallest = min(left, key=left.get)
        rejected.add(smallest)
        del left[smallest]
    return rejected


@pytest.mark.parametrize("seed", range(5))
def test_holms_correction_rejects_what_his_steps_reject(seed):
    p = np.random.default_rng(seed).random(12) ** 4
    for level in (0.01, 0.05, 0.2):
        assert set(np.flatnonzero(holm(p) < level)) == by_steps(p, level)


def test_what_is_no_comparison_is_not_corrected_for():
    found = holm([0.01, math.nan, 0.02, 0.9])
    assert found[[0, 2, 3]].tolist() == holm([0.01, 0.02, 0.9]).tolist() == [0.03, 0.04, 0.9]
    assert math.isnan(found[1])
    assert holm([0.7, 0.8]).tolist() == [1, 1]  # no p-value is above 1


def test_what_is_said_of_many_differences():
    "One of 3.5 errors survives the correction for five; one of 2.2 and one of −2.2 do not."
    gaps = [gap_of(d, 1.0) for d in (3.5, 2.2, 0.1, -2.2, 0.0)] + [Gap(math.nan), Gap(0.4)]
    found = verdict_of_many(gaps)
    assert (found["up"], found["down"]) == (4, 1)
    assert (found["up, p < 0.05"], found["down, p < 0.05"]) == (2, 1)
    assert (found["up, by Holm"], found["down, by Holm"]) == (1, 0)
    assert found["either by chance, p < 0.05"] == pytest.approx(5 * 0.025)
    assert found["up by chance"] == "0 to 5"  # of five that moved: 0 to 5 in 97 of 100 cases
    many = [gap_of(d, 1.0) for d in [0.1] * 19 + [-0.1] * 15]
    assert verdict_of_many(many)["up by chance"] == "11 to 23"
    lost = verdict_of_many([gap_of(-3.5, 1.0)] * 2)
    assert (lost["down, by Holm"], lost["up, by Holm"]) == (2, 0)


class Told(Measurement):
    "A measurement that is told its values by seed, its error, and which images are right."

    def __init__(self, *values, error=math.nan, right=None):
        self.values, self.known, self.answers = values, error, right

    def value(self, store, seed):
        return self.values[seed]

    def error(self, store, seed):
        return self.known + seed


class Answered(Told):
    "One that keeps which images are right."

    def right(self, store, seed):
        return self.answers[seed]


def cell(m):
    return Planned(tuple(range(len(m.values))), m)


def test_the_gap_of_two_cells():
    "Paired by seed; of one run by the images that both saw, or by the error of each."
    right = np.array([[1, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 1]]) > 0
    a, b = Answered(50.0, right=right[:1]), Answered(100 / 3, right=right[1:])
    of_images = float(paired_error(*right))
    assert gap_of_cells(None, cell(a), cell(b)) == gap([50], [100 / 3], of_images)
    b = Told(40.0, error=4.0)
    assert gap_of_cells(None, cell(Told(50.0, error=3.0)), cell(b)) == gap([50], [40], 5.0)
    several = gap_of_cells(None, cell(Told(5.0, 7.0)), cell(Told(4.0, 4.0)))
    assert several == gap([5, 7], [4, 4]) and several.over == "seeds"
    late = Told(math.nan, 80.0, error=3.0), Told(60.0, 60.0, error=3.0)
    assert gap_of_cells(None, *map(cell, late)) == gap([80], [60], math.hypot(4, 4))  # of seed 1
    for pair in ((cell(a), Planned(reason="none")), (Planned(reason="none"), cell(a))):
        assert math.isnan(gap_of_cells(None, *pair).value)


def test_the_picture_of_differences():
    "A line and a mark each; red beyond chance after the correction, hollow if over images."
    gaps = {"far": gap_of(5.0, 1.0, n=2, over="seeds"), "near": gap_of(2.1, 1.0, over="images")}
    gaps["nothing"] = gap_of(0.1, 1.0, over="images")
    assert gaps["near"].p < 0.05  # and twice that is above
    drawn = draw_gaps({"left": gaps, "right": gaps})
    axes = drawn.axes
    assert [ax.get_title() for ax in axes] == ["left", "right"]
    assert [t.get_text() for t in axes[0].get_yticklabels()] == [*gaps]
    line, mark, other, hollow, _, _, zero = axes[1].lines
    assert list(line.get_xdata()) == [gaps["far"].low, gaps["far"].high]
    assert list(mark.get_xdata()) == [5.0] and list(hollow.get_ydata()) == [1]
    assert line.get_color() == mark.get_markerfacecolor() == "C3" != other.get_color()
    assert hollow.get_markerfacecolor() == "white" and list(zero.get_xdata()) == [0, 0]
    plt.close(drawn)


def test_runs_that_are_not_of_the_same_seeds_are_no_pairs():
    "One run against three was taken for three pairs."
    with pytest.raises(BadInput, match="1 runs and 3: one of each for every seed"):
        gap([1.0], [0.9, 0.8, 0.7])


def test_differences_that_differ_by_rounding_only_have_no_spread():
    "0.1 and 0.1 with another last bit had p = 5e-14, and counted as beyond all chance."
    found = gap([70.0, 70.2], [69.9, 70.1])
    assert found.value == pytest.approx(0.1) and math.isnan(found.low) and math.isnan(found.p)
    assert verdict_of_many([found])["up, by Holm"] == 0


# Numbers that no difference above tells


def test_cells_of_unlike_numbers_of_runs_are_no_pairs():
    "Also where no run has a number; and of one run without a number there is no difference."
    with pytest.raises(BadInput, match="1 runs and 3: one of each for every seed"):
        gap_of_cells(None, cell(Told(math.nan)), cell(Told(1.0, 2.0, 3.0)))
    assert math.isnan(gap_of_cells(None, cell(Told(math.nan)), cell(Told(1.0))).value)


def test_what_is_said_does_not_depend_on_the_unit():
    "Points, shares or nats: the counts are the same."
    differences = (3.5, 2.2, 0.1, -2.2, -3.6, 0.0)
    found = [
        verdict_of_many([gap_of(d * unit, unit) for d in differences]) for unit in (100, 1, 1e-3)
    ]
    assert found[0] == found[1] == found[2]
    assert (found[0]["up, by Holm"], found[0]["down, by Holm"]) == (1, 1)


def test_what_chance_alone_gives_has_half_of_the_level_at_either_end():
    "Of 20: up to 5 in 2.07 of 100 cases, up to 6 in 5.77."
    many = [gap_of(d, 1.0) for d in [0.1] * 11 + [-0.1] * 9]
    assert verdict_of_many(many)["up by chance"] == "6 to 14"
