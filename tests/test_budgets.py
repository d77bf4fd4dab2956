"""Accuracy over ε: which attacks can cross their ball, and what their cells say."""

import pytest

from thesis_repro.attacks import PGD
from thesis_repro.budgets import accuracies, budget_attacks, wide_pgd
from thesis_repro.tables import Cell


def test_a_step_that_cannot_cross_its_ball_is_told_from_one_that_can():
    attacks = budget_attacks((8, 32))
    reach = {n: a.steps * a.stride / a.epsilon for n, a in attacks.items() if "PGD" in n}
    assert reach["PGD-10 / 32"] < 1 < reach["PGD-10, step ε/4 / 32"]
    assert attacks["PGD-10 / 8"] == attacks["PGD-10, step ε/4 / 8"] == PGD()
    assert {n: round(255 * a.stride, 6) for n, a in attacks.items() if "PGD-10 /" in n} == {
        "PGD-10 / 8": 2.0,
        "PGD-10 / 32": 2.0,
    }
    assert wide_pgd(1.0).steps * wide_pgd(1.0).stride == pytest.approx(2.5)


def test_accuracies_are_a_row_per_method_attack_epsilon_and_seed():
    cells = [Cell("PGD", "FGSM / 8", (50.0, 52.0)), Cell("M2AT", "PGD-10, step ε/4 / 32", (9.0,))]
    rows = [("PGD", "FGSM", 8, 0, 50.0), ("PGD", "FGSM", 8, 1, 52.0)]
    rows += [("M2AT", "PGD-10, step ε/4", 32, 0, 9.0)]
    assert [tuple(row) for row in accuracies(cells).itertuples(index=False)] == rows
