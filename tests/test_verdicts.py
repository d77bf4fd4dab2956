"""A verdict is what statistics says, and no margin takes one method for another."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from thesis_repro.files import BadInput
from thesis_repro.published import SEEDS, Printed, columns, published, tables
from thesis_repro.verdicts import (
    Measured,
    Moments,
    against,
    cell_margin,
    cell_verdict,
    default_margin,
    difference,
    half_width,
    image_variance,
    moments,
    subset_factor,
    subset_variance,
    verdict_rule,
)


def verdict(values, printed=96.97, std=0.16, n=SEEDS, margin=1.0, unit="%", **more):
    return cell_verdict(values, printed, std, n, margin, unit, **more)


def five_runs(mean, std):
    "Five runs with exactly this mean and sample deviation."
    return [mean + std * z for z in (-1, -1, 0, 1, 1)]


# ---- the statistics, against scipy and by simulation


def test_difference_is_welch():
    rng = np.random.default_rng(0)
    for n, m in itertools.product((2, 3, 5), (2, 5)):
        a, b = rng.normal(97, 0.3, n), rng.normal(96, 0.1, m)
        ci = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
        assert np.allclose(difference(moments(a), moments(b), 0.9), (a.mean() - b.mean(), *ci))


def test_moments_of_all_that_a_cell_may_be():
    m = moments([96.0, None, 97.0, math.nan])
    assert (m.mean, m.n) == (96.5, 2) and m.std == pytest.approx(math.sqrt(0.5))
    assert moments(m) is m and moments(Measured((96.0, 97.0))) == m
    assert moments(Printed(96.97, 0.16, False)) == Moments(96.97, 0.16, 5)
    assert moments([]).n == 0 and not moments([1.0]).spread and not moments([1.0, 1.0]).spread


# ---- the verdict on a cell


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([96.8, 97.1, 96.9, 97.0, 96.7], "holds"),
        ([94.8, 95.1, 94.9, 95.0, 94.7], "fails"),
        ([99.1, 99.2, 99.0], "fails"),
        ([95.9, 96.1, 95.8, 96.0, 96.2], "inconclusive"),
        ([96.5, 97.3], "inconclusive"),
        ([96.97], "inconclusive"),
        ([96.9, 96.9], "inconclusive"),
        ([], "not run"),
        ([None, math.nan], "not run"),
    ],
)
def test_the_verdict_on_a_cell(values, word):
    v = verdict(values)
    assert v.verdict == word and v.reason and v.n == sum(x is not None and x == x for x in values)


def test_the_interval_of_a_cell_is_that_of_five_published_runs():
    ours, theirs = [96.8, 97.1, 96.9], five_runs(96.97, 0.16)
    assert np.std(theirs, ddof=1) == pytest.approx(0.16)
    v = verdict(ours)
    ci = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
    assert np.allclose((v.low, v.high), ci)


def test_equivalence_is_not_granted_for_want_of_runs():
    # Far apart in truth, but two noisy runs: no test of a difference would reject them.
    assert verdict([94.0, 99.5]).verdict == "inconclusive"


def test_what_cannot_be_compared_is_shown_with_its_reason():
    v = verdict([98.0, 98.4], comparable="stand-in digits10")
    assert (v.verdict, v.reason, v.n) == ("not comparable", "stand-in digits10", 2)
    assert v.estimate == pytest.approx(1.23)
    v = verdict([], comparable="the run failed")
    assert (v.verdict, v.reason) == ("not run", "the run failed")
    assert verdict([]).reason == "no run of ours"


def test_quoted_and_unprinted_cells():
    assert verdict([], cited=True).verdict == "cited"
    assert verdict([96.9, 97.0], cited=True).verdict == "holds"  # with our runs it is judged
    v = verdict([98.0, 98.4], printed=math.nan, std=math.nan, margin=math.nan)
    assert (v.verdict, v.reason) == ("ours only", "no number is printed here")
    assert verdict([], printed=math.nan, std=math.nan, margin=math.nan).verdict == "not run"


@pytest.mark.parametrize("margin", [0, -1, math.nan])
def test_a_margin_is_a_number_above_zero(margin):
    with pytest.raises(BadInput, match="margin"):
        verdict([96.0, 97.0], margin=margin)


# ---- a number that is printed without ± (chapter 5)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([54.8, 55.1, 55.3, 54.9, 55.0], "fails"),
        ([80.4, 80.7, 80.9, 80.6, 80.8], "holds"),
        ([79.4, 80.7, 81.9, 80.0, 81.3], "inconclusive"),
    ],
)
def test_a_number_without_a_spread_is_compared_with_ours(values, word):
    v = verdict(values, 80.66, math.nan)
    assert v.verdict == word and "no spread is printed" in v.reason
    ci = stats.ttest_1samp(np.subtract(values, 80.66), 0).confidence_interval()
    assert np.allclose((v.low, v.high), ci)


@pytest.mark.parametrize(
    ("values", "why"), [([80.66], "one run says nothing"), ([80.7, 80.7], "the runs do not differ")]
)
def test_without_any_spread_nothing_can_be_said(values, why):
    for std in (math.nan, 0.16):
        v = verdict(values, 80.66, std)
        assert v.verdict == "inconclusive" and v.reason.startswith(why)


def test_no_cell_of_chapter_5_takes_two_numbers_for_the_same():
    for table in ("5.1", "5.2", "5.3", "5.4"):
        t = published(table)
        for c in t.itertuples():
            margin = cell_margin(t, c.row, c.column)
            far = five_runs(c.value + 3, 0.3)
            assert verdict(far, c.value, c.std, margin=margin).verdict == "fails"
            assert (
                verdict(five_runs(c.value, 1e-3), c.value, c.std, margin=margin).verdict == "holds"
            )


# ---- the margin


def test_no_cell_of_aip_holds_with_the_numbers_of_manifold_mixup():
    judged = []
    for table in ("7.1", "7.2"):
        t = published(table)
        other = t.set_index(["row", "column"])
        for c in t[t.row.str.endswith("AIP")].itertuples():
            o = other.loc[c.row.replace("AIP", "Manifold mixup"), c.column]
            margin = cell_margin(t, c.row, c.column)
            judged.append(verdict(five_runs(o.value, o["std"]), c.value, c.std, margin=margin))
    assert len(judged) == 20 and "holds" not in {v.verdict for v in judged}


def test_no_number_of_rounds_holds_with_the_numbers_of_another():
    t = published("7.3")
    judged = []
    for _, row in t.groupby("row"):
        for a, b in itertools.permutations(row.itertuples(), 2):
            margin = cell_margin(t, a.row, a.column, along="columns")
            judged.append(verdict(five_runs(b.value, b.std), a.value, a.std, margin=margin))
    assert len(judged) == 120 and "holds" not in {v.verdict for v in judged}


@pytest.mark.parametrize("table", tables())
def test_no_cell_holds_with_another_methods_number(table):
    # However many runs there are: even without any scatter, the number of another method is wrong.
    along = "columns" if table in ("table_7_3", "table_7_5") else "rows"
    t, unit = published(table).dropna(subset="value"), "s" if table == "table_7_5" else "%"
    fixed, varied = ("row", "column") if along == "columns" else ("column", "row")
    for _, line in t.groupby(fixed):
        for a, b in itertools.permutations(line.itertuples(), 2):
            same_group = (
                getattr(a, varied).split(" / ")[:-1] == getattr(b, varied).split(" / ")[:-1]
            )
            if same_group and a.value != b.value:
                margin = cell_margin(t, a.row, a.column, unit, along)
                runs = five_runs(b.value, 1e-6 * max(b.value, 0.01))
                v = verdict(runs, a.value, math.nan, margin=margin, unit=unit)
                assert v.verdict == "fails", (a, b)


@pytest.mark.parametrize(
    ("table", "row", "column", "along", "margin"),
    [
        ("7.1", "AIP", "Best / CIFAR-10", "rows", (96.97 - 96.88) / 2),  # MetaMixup is the nearest
        ("7.1", "AIP", "Last / CIFAR-10", "rows", (96.88 - 96.47) / 2),
        ("7.1", "AIP", "Best / Tiny ImageNet", "rows", 1.0),  # the next is 2.56 points away
        ("7.2", "WideResNet28-10 / AIP", "Best / SVHN", "rows", (98.04 - 97.99) / 2),
        ("7.3", "SVHN", "4", "columns", (97.85 - 97.80) / 2),  # K = 6 is the same number
        ("7.3", "CIFAR-10", "2", "columns", (96.83 - 96.11) / 2),
        ("6.7", "WRN34-10 / τ = 3", "CIFAR-10 / CW-PGD", "rows", (50.65 - 50.49) / 2),
        ("6.8", "Last / w/ sim.", "AA", "rows", (48.92 - 48.73) / 2),  # not the best model's row
        ("5.1", "CIFAR-10 / M2AT", "PGD-20", "rows", 1.0),
        ("5.1", "CIFAR-100 / M2AT (rand)", "Clean", "rows", (68.76 - 67.76) / 2),
        ("5.1", "CIFAR-10 / Standard", "PGD-10", "rows", 1.0),
    ],
)
def test_a_margin_is_half_of_the_gap_to_the_next_method(table, row, column, along, margin):
    assert cell_margin(published(table), row, column, "%", along) == pytest.approx(margin)


def test_seconds_have_a_tenth_of_their_value_at_most():
    t = published("7.5")
    row = "elapsed time [s]"
    margins = [cell_margin(t, row, c, "s", along="columns") for c in columns("7.5")]
    near = (0.035004 - 0.034844) / 2
    assert margins == pytest.approx([near, near, 0.0175844])
    assert default_margin(-4.0, "times") == pytest.approx(0.4)
    assert (
        default_margin(50, "%"),
        default_margin(50, "points"),
        default_margin(0.5, "share"),
    ) == (
        1.0,
        1.0,
        0.01,
    )


def test_without_another_method_the_printed_spread_is_the_margin():
    t = published("7.1").query("row == 'AIP'")
    assert cell_margin(t, "AIP", "Best / CIFAR-10") == pytest.approx(0.16)
    assert cell_margin(t.assign(std=2.5), "AIP", "Best / CIFAR-10") == 1.0
    assert cell_margin(t.assign(std=math.nan), "AIP", "Best / CIFAR-10") == 1.0
    tied = published("7.3").query("row == 'SVHN' and column in ('4', '6')")
    assert cell_margin(tied, "SVHN", "4", along="columns") == pytest.approx(0.03)


def test_a_margin_asks_for_a_cell_that_is_there():
    with pytest.raises(BadInput, match="no cell AIP, Best / MNIST in this table"):
        cell_margin(published("7.1"), "AIP", "Best / MNIST")
    with pytest.raises(BadInput, match="along = diagonal: must be rows or columns"):
        cell_margin(published("7.1"), "AIP", "Best / CIFAR-10", along="diagonal")


# ---- some of the test images


def test_the_variance_of_a_subset_by_hand():
    assert subset_factor((100, 10_000)) == pytest.approx(9_900 / 9_999 / 100)
    assert subset_factor((10_000, 10_000)) == 0 and subset_factor((1, 1)) == 0
    assert subset_variance(20.0, (50, 100)) == pytest.approx(1e4 * 0.16 / 50 * 50 / 99)
    for images in ((0, 10), (11, 10), (-5, 10)):
        with pytest.raises(BadInput, match="images"):
            subset_factor(images)


def test_few_test_images_widen_the_interval_and_are_named():
    runs = [80.4, 80.7, 80.9, 80.6, 80.8]
    every, some = (verdict(runs, 80.66, 0.2, images=(m, 10_000)) for m in (10_000, 100))
    assert every == verdict(runs, 80.66, 0.2)
    assert (every.verdict, some.verdict) == ("holds", "inconclusive")
    assert some.reason.endswith("on 100 of 10,000 test images")
    assert some.high - some.low > 2 * 1.96 * math.sqrt(subset_variance(80.68, (100, 10_000)))
    more = verdict(runs * 20, 80.66, 0.2, images=(100, 10_000))
    assert more.high - more.low > 15  # seeds do not replace images: all see the same ones
    with pytest.raises(BadInput, match="only for an accuracy in %, not for s"):
        verdict([0.1, 0.2], 0.1, images=(10, 100), unit="s")


def drawn(rng, pool, seeds, m):
    "One accuracy per seed on the same m images of a pool (probabilities of being correct)."
    chosen = rng.choice(len(pool), m, replace=False)
    return 100 * (rng.random((seeds, m)) < pool[chosen]).mean(axis=1)


def test_the_interval_on_a_subset_covers_the_number_on_all_images():
    rng = np.random.default_rng(0)
    hits, blind, trials = 0, 0, 1000
    for _ in range(trials):
        pool = rng.permutation(np.r_[np.full(60, 0.9), np.full(240, 0.05), np.full(100, 0.5)])
        truth, runs = 100 * pool.mean(), drawn(rng, pool, 5, 80)
        v = verdict(runs, truth, math.nan, images=(80, 400))
        hits += v.low <= 0 <= v.high
        v = verdict(runs, truth, math.nan)
        blind += v.low <= 0 <= v.high
    # too wide where single images are uncertain (their scatter is in both parts), never too narrow
    assert hits / trials > 0.94 and blind / trials < 0.9, (hits, blind)


def test_methods_on_the_same_images_are_compared_image_by_image():
    a = np.array([[1, 1, 0, 0], [1, 1, 0, 1]], dtype=bool)
    b = np.array([[1, 0, 0, 0], [1, 1, 0, 0]], dtype=bool)
    two = [Measured(tuple(100 * x.mean(axis=1)), (4, 10), tuple(x)) for x in (a, b)]
    d = 100 * (a.mean(axis=0) - b.mean(axis=0))
    assert image_variance([1, -1], two) == pytest.approx(d.var(ddof=1) / 4 * 6 / 9)
    blind = [Measured(m.values, m.images) for m in two]
    own = sum(subset_variance(m.mean, (4, 10)) for m in map(moments, blind))
    assert image_variance([1, -1], blind) == pytest.approx(own)
    assert image_variance([1, -1], [moments(m) for m in blind]) == 0
    assert image_variance([2, 0], blind) == pytest.approx(
        4 * subset_variance(moments(blind[0]).mean, (4, 10))
    )


def test_the_first_images_of_two_data_sets_are_not_the_same_images():
    "CIFAR-10 and CIFAR-100 have 10,000 test images each, and 1,000 of either were paired."
    right = np.array([[1, 1, 0, 0], [1, 1, 0, 1]], dtype=bool)
    names = ("CIFAR-10", "CIFAR-100", "")
    one, other, unnamed = (Measured((50.0, 75.0), (4, 10), tuple(right), "", n) for n in names)
    assert image_variance([1, -1], [one, one]) == 0 == image_variance([1, -1], [one, unnamed])
    alone = image_variance([1], [one])
    assert alone > 0 and image_variance([1, -1], [one, other]) == pytest.approx(2 * alone)
    three = image_variance([1, -1, 1], [one, other, unnamed])  # whose images are those of the last?
    assert three == pytest.approx(3 * alone)


def test_outcomes_are_as_many_as_the_images():
    with pytest.raises(BadInput, match="outcomes: must be 4 bools per run"):
        Measured((50.0, 50.0), (4, 10), ([True, False], [True, False]))
    with pytest.raises(BadInput, match="outcomes"):
        Measured((50.0,), None, ([True, False],))


# ---- the rule in words


def test_the_rule_names_every_verdict_in_few_words():
    rule = verdict_rule()
    words = "holds fails inconclusive comparable tried half gap spread images seed score".split()
    assert all(w in rule for w in words) and "95 %" in rule
    assert len(rule.split()) < 200 and "\n" not in rule


# ---- borders


def test_an_interval_that_touches_the_border_from_within_holds():
    "The border itself counts as within; a claim fails only where no part of the interval is."
    assert against(-1.0, 1.0, -1.0, 1.0) == "holds"
    for low, high in ((-2.0, -1.0), (1.0, 2.0), (-2.0, 2.0)):
        assert against(low, high, -1.0, 1.0) == "inconclusive"
    assert against(1.0 + 1e-9, 2.0, -1.0, 1.0) == "fails" == against(-2.0, -1 - 1e-9, -1.0, 1.0)


def test_half_of_an_interval_is_that_of_students_t():
    assert half_width([(2.0 / 5, 4)]) == pytest.approx(stats.t.ppf(0.975, 4) * math.sqrt(0.4))
    assert half_width([(0.0, 4)]) == 0  # what never differs is known


def test_a_further_source_of_error_never_makes_an_interval_shorter():
    "Three runs, and a known spread of the test images: with its freedom t would be smaller."
    runs = (6.3, 2)
    for known in (0.0, 0.1, 3.0, 50.0):
        assert half_width([runs, (known, math.inf)]) >= half_width([runs])
    wide = half_width([runs, (1e4, math.inf)])
    assert wide == pytest.approx(stats.norm.ppf(0.975) * 100, rel=0.01)


@pytest.mark.parametrize("of", (1, 2, 3, 5))
def test_the_variance_of_a_subset_is_that_over_all_subsets(of):
    g = np.random.default_rng(of).normal(size=of)
    for used in range(1, of + 1):
        means = [np.mean(s) for s in itertools.combinations(g, used)]
        assert subset_factor((used, of)) * g.var() == pytest.approx(np.var(means), abs=1e-12)


def test_two_images_say_how_much_images_differ_and_one_does_not():
    one, two = ([np.array(o) for o in ((True,) * n, (True,) * (n - 1) + (False,))] for n in (1, 2))
    with pytest.raises(BadInput, match="one image does not say how much images differ"):
        Measured((100.0, 0.0), (1, 10), tuple(one))
    m = Measured((100.0, 50.0), (2, 10), tuple(two))
    assert image_variance([1], [m]) == pytest.approx(np.var([100, 50], ddof=1) / 2 * 8 / 9)


def test_the_last_digit_of_a_large_number_is_no_spread():
    large = 3e9
    assert not moments([large, np.nextafter(large, 4e9)]).spread
    assert moments([large, large + 10]).spread
