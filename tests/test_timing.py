"Seconds measured in pairs: whose turn it is, whose seconds they are, and what ratios say."

import pandas as pd
import pytest
import torch

from thesis_repro import timing
from thesis_repro.files import BadInput
from thesis_repro.timing import paired_seconds, ratios, timed


def test_actions_take_turns_in_rotating_order():
    calls = []
    frame = paired_seconds({k: lambda k=k: calls.append(k) for k in "ABC"}, repeats=4, warmup=2)
    rounds = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert rounds == ["BCA", "CAB", "ABC", "BCA", "CAB", "ABC"]
    assert list(frame.columns) == list("ABC") and len(frame) == 4
    assert (frame >= 0).all(axis=None)


def test_seconds_are_seconds_of_the_right_column(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def takes(seconds):
        return lambda: clock.__setitem__(0, clock[0] + seconds)

    frame = paired_seconds({"slow": takes(3.0), "fast": takes(0.5)}, repeats=3)
    assert (frame["slow"] == 3.0).all() and (frame["fast"] == 0.5).all()
    assert ratios(frame, "fast").to_dict() == {"slow": 6.0, "fast": 1.0}


@pytest.mark.parametrize(
    "device, begun, wanted",
    [
        ("cuda:1", True, ["wait cuda:1", "run", "wait cuda:1"]),
        ("cpu", True, ["run"]),
        ("cuda", False, ["run"]),
    ],
)
def test_the_clock_waits_for_the_gpu_that_works(monkeypatch, device, begun, wanted):
    events = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: begun)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda d: events.append(f"wait {d}"))
    paired_seconds({"A": lambda: events.append("run")}, repeats=1, warmup=0, device=device)
    assert events == wanted


def test_the_time_of_one_call_comes_with_its_result(device):
    seconds, result = timed(lambda: torch.ones(3, device=device).sum().item(), device)
    assert result == 3 and 0 < seconds < 60


def test_ratios_are_medians_of_pairs():
    frame = pd.DataFrame({"A": [1.0, 10.0, 100.0], "B": [2.0, 20.0, 900.0]})
    assert ratios(frame, "A")["B"] == 2.0
    assert ratios(frame, "B")["A"] == 0.5


@pytest.mark.parametrize(
    "call",
    [
        lambda: paired_seconds({}, 3),
        lambda: paired_seconds({"A": int}, 0),
        lambda: ratios(pd.DataFrame({"A": [1.0]}), "B"),
    ],
)
def test_bad_timings(call):
    with pytest.raises(BadInput) as e:
        call()
    assert "\n" not in str(e.value)
