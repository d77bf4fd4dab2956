"""What can be measured of a run is known before anything is trained, where its images are."""

import dataclasses
import errno
import types
import warnings
from pathlib import Path

import pytest
from methods import store_at

from thesis_repro import measures
from thesis_repro.files import BadInput
from thesis_repro.measures import Recorded, Robustness, check_fit
from thesis_repro.mixup import Plain
from thesis_repro.recipes import Classify
from thesis_repro.runs import Named, Run
from thesis_repro.training import Length


def test_what_does_not_fit_is_refused_where_the_images_are_there(tmp_path):
    class Never(Recorded):
        def fits(self, run):
            raise BadInput("too few")

    here = Run(Named("digits10", 40, 20, 20), Classify("resnet18", Plain()), Length(1, 20))
    absent = dataclasses.replace(here, data=Named(f"npz:{tmp_path / 'none.npz'}@0123456789ab"))
    with pytest.raises(BadInput, match="too few"):
        check_fit(Never("last.accuracy"), here)
    check_fit(Never("last.accuracy"), absent)  # a table is drawn of its records all the same


def test_what_other_code_has_kept_is_told_and_made_again_when_asked(tmp_path):
    "A figure's own numbers were never outdated, whatever became of the code."
    store, made = store_at(tmp_path), []

    def compute(value=1):
        made.append(value)
        return value

    def kept(value, code, fresh=False):
        how = {"fresh": fresh, "by": {"module": code}}
        return measures.measure(store, "of a test", {"a": 1}, lambda: compute(value), **how)

    with warnings.catch_warnings(action="error"):
        assert kept(1, "old") == kept(2, "old") == 1 and made == [1]
    with pytest.warns(UserWarning, match="of a test: measured by other code .module.: --fresh"):
        assert kept(2, "new") == 1
    with measures.remaking(), warnings.catch_warnings(action="error"):
        assert kept(2, "new") == kept(3, "new") == 2 and made == [1, 2]
    assert kept(4, "new") == 2 and kept(4, "new", fresh=True) == 4


def test_a_value_of_old_weights_is_not_kept_for_new_ones(tmp_path, monkeypatch):
    store = store_at(tmp_path)
    run = Run(Named("digits10", 40, 20, 20), Classify("resnet18", Plain()), Length(1, 20))
    record = types.SimpleNamespace(weights={"last": "old"})
    monkeypatch.setattr(type(store), "record", lambda self, run: record)

    def compute():
        seen, record.weights = record.weights["last"], {"last": "new"}  # another command made it
        return seen

    with pytest.raises(BadInput, match="made again while it was measured"):
        measures.measure(store, "of a test", {"run": run}, compute, by={})
    assert not [*tmp_path.rglob("of a test-*.json")]


def test_what_cannot_be_removed_is_one_line(tmp_path, monkeypatch):
    def refuse(self, missing_ok=False):
        raise OSError(errno.EROFS, "Read-only file system")

    kept = Robustness(None, size=10)
    run = Run(Named("digits10", 40, 20, 20), Classify("resnet18", Plain()), Length(1, 20))
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(BadInput, match="(?i)read-only"):
        kept.forget(store_at(tmp_path), run)
