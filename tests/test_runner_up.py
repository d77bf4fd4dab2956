"""Where attacks push: whose share is counted, and which samples are shown."""

import numpy as np

from thesis_repro.runner_up import runner_up_share, shown_samples, tidy


def test_runner_up_shares_are_counted_on_what_was_right_and_is_misled():
    clean = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1]])
    fgsm = np.array([[0.1, 0.8, 0.1], [0.1, 0.2, 0.7], [0.9, 0.05, 0.05]])
    pgd = np.array([[0.6, 0.3, 0.1], [0.8, 0.1, 0.1], [0.9, 0.05, 0.05]])
    y = np.array([0, 1, 2])  # the third is wrong from the start
    assert runner_up_share(clean, fgsm, y) == 0.5 and runner_up_share(clean, pgd, y) == 1
    assert np.isnan(runner_up_share(clean, clean, y))
    predicted = {"clean": clean, "FGSM": fgsm, "PGD": pgd}
    assert shown_samples(predicted, y) == {"(a) FGSM and PGD mislead": 1}
    rows = tidy(predicted, y)
    assert len(rows) == 27 and list(rows.label[rows["sample"] == 2].unique()) == [2]
    assert rows.query("input == 'PGD' and sample == 1")["probability"].tolist() == [0.8, 0.1, 0.1]
