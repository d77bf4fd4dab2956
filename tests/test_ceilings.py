"""The rates of a GPU are made of its ceilings, which are found where `bench gpu` has left them."""

import itertools
import os

import pytest

from thesis_repro.ceilings import A100, ANSWERS, REACHES, Ceilings, gpu_rates, of_gpu
from thesis_repro.devices import PRECISIONS
from thesis_repro.files import atomic_json

SMALL = Ceilings(10.0, 20.0, 40.0, 100.0)


@pytest.mark.parametrize(
    "precision, speed, size", [("fp32", 10, 4), ("tf32", 20, 4), ("bf16", 40, 2)]
)
def test_rates_by_hand(precision, speed, size):
    r = REACHES["likely"]
    moved, product = r.moved * size / 100e3, 2 / (r.share * speed * 1e3)
    passed, to_inputs, to_weights = gpu_rates(SMALL, precision).rows
    assert passed == to_inputs == pytest.approx((r.launch, moved, product))
    assert to_weights == pytest.approx((r.launch, moved / 3, product))
    assert gpu_rates(SMALL, precision).step == r.step


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_part_of_the_range_grows_from_low_to_high(precision):
    ends = [gpu_rates(A100, precision, reach) for reach in ("low", "likely", "high")]
    for a, b in itertools.pairwise(ends):
        assert a.step < b.step
        assert all(
            x < y for m, n in zip(a.rows, b.rows, strict=True) for x, y in zip(m, n, strict=True)
        )


def left(folder, name="a GPU", age=0.0, **changes):
    "Answers in a folder, so many seconds old, with some items changed or (None) left out."
    found = {f"TFLOP/s of a product, {p}": v for p, v in zip(PRECISIONS, (1, 2, 3), strict=True)}
    found |= {"GB/s of a copy": 4, "device": {"name": name, "cuda": "13.2"}} | changes
    found = {k: v for k, v in found.items() if v is not None}
    file = folder / ANSWERS
    atomic_json(file, {"parts": {"machine": {"found": found}}})
    os.utime(file, (1e9 - age, 1e9 - age))
    return Ceilings(1, 2, 3, found.get("GB/s of a copy"), name, str(file))


def test_the_newest_answers_of_a_gpu_count(tmp_path):
    assert of_gpu("", tmp_path) == of_gpu("a GPU", tmp_path) == A100
    old = left(tmp_path / "fast", age=9)
    assert of_gpu("a GPU", tmp_path) == of_gpu("", tmp_path) == old
    new = left(tmp_path / "smoke" / "with-epochs-1", age=5, **{"GB/s of a copy": 5})
    assert of_gpu("a GPU", tmp_path) == new and new.copied == 5
    other = left(tmp_path, "another", age=1)
    assert of_gpu("a GPU", tmp_path) == new and of_gpu("", tmp_path) == other
    assert of_gpu("a third", tmp_path) == A100


@pytest.mark.parametrize(
    "changes",
    [
        {"TFLOP/s of a product, tf32": None},
        {"GB/s of a copy": "fast"},
        {"GB/s of a copy": 0},
        {"device": {"name": "x86_64", "threads": 2}},
        {"device": "a GPU"},
    ],
)
def test_answers_that_do_not_say_all_are_passed_over(tmp_path, changes):
    "So is a rehearsal on a processor."
    left(tmp_path / "fast", **changes)
    assert of_gpu("", tmp_path) == A100
    whole = left(tmp_path / "smoke", age=100)
    assert of_gpu("", tmp_path) == whole


@pytest.mark.parametrize("text", ["", "{", "[]", '{"parts": []}', '{"parts": {"steps": {}}}', "\0"])
def test_a_damaged_file_is_no_file(tmp_path, text):
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke" / ANSWERS).write_text(text)
    assert of_gpu("", tmp_path) == A100
