"""Records that travel: what comes out goes in, twice is harmless, and nothing damaged or different gets through."""

import gzip
import json
import shutil

import pytest

from thesis_repro import records, settings
from thesis_repro.attacks import FGSM
from thesis_repro.cli import main
from thesis_repro.files import BadInput, sha256
from thesis_repro.mixup import Mixup, Plain
from thesis_repro.runs import Robustness, Run, Store, outcome
from thesis_repro.training import Schedule


def small(seed=0, method=None):
    "A run of a second."
    schedule = Schedule(epochs=1, batch_size=50)
    return Run(
        "digits10",
        "preactresnet18",
        method or Plain(),
        schedule,
        seed,
        0.03,
        100,
        50,
        50,
        home="own/runs",
        label="small",
    )


RUNS = (small(), small(1), small(0, Mixup()))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    "A preset's folder with three runs and a measurement."
    home = tmp_path_factory.mktemp("original")
    store = Store(settings.load("smoke", device="cpu", jobs=1), home)
    for run in RUNS:
        store.make(run, progress=False)
    outcome(store, RUNS[0], Robustness(FGSM(), size=20))
    return home


@pytest.fixture
def there(original, tmp_path):
    "A copy of it."
    return shutil.copytree(original, tmp_path / "there")


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def packed(there, change=lambda content: None, sealed=True):
    "An exported file whose content was changed on the way; `sealed`: with the file's own checksum made anew."
    content = records.pack(there)
    change(content)
    if sealed:
        content["sha256"] = records._digest(content)
    file = there.parent / "sent.json"
    file.write_text(json.dumps(content))
    return file


def test_what_comes_out_goes_in_byte_for_byte(there, tmp_path):
    file = records.export(there, tmp_path / "records.json.gz")
    assert records.merge([file], tmp_path / "here") == {"runs": 3, "measurements": 1, "present": 0}
    before, after = contents(there), contents(tmp_path / "here")
    assert {
        k: v for k, v in before.items() if not k.endswith(".ckpt") and ".locks" not in k
    } == after
    store = Store(settings.load("smoke"), tmp_path / "here")
    assert [r.metrics for r in store.ensure(RUNS)] == [
        Store(store.preset, there).record(r).metrics for r in RUNS
    ]


def test_the_same_records_give_the_same_file(there, tmp_path):
    files = [records.export(there, tmp_path / f"{name}.json.gz") for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_merging_twice_is_harmless(there, tmp_path):
    file = records.export(there, tmp_path / "records.json")
    records.merge([file], tmp_path / "here")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "here").rglob("*")}
    assert records.merge([file, file], tmp_path / "here") == {
        "runs": 0,
        "measurements": 0,
        "present": 8,
    }
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "here").rglob("*")} == before


def test_two_machines_add_up_and_another_table_changes_nothing(there, tmp_path):
    first, other = tmp_path / "first", tmp_path / "other"
    for home, key in ((first, RUNS[0].key), (other, RUNS[1].key)):
        kept = [p for p in there.glob("runs/*/*/*") if p.name.endswith(key)]
        shutil.copytree(kept[0], home / "runs" / "aip" / f"table_{home.name}" / kept[0].name)
    files = [records.export(home, tmp_path / f"{home.name}.json") for home in (first, other)]
    assert (
        records.merge([records.export(there, tmp_path / "all.json")], tmp_path / "here")["runs"]
        == 3
    )
    assert records.merge(files, tmp_path / "here") == {"runs": 0, "measurements": 0, "present": 2}
    assert records.merge(files, tmp_path / "new")["runs"] == 2


def of_first(content, **changes):
    "Change the first run's record, with its checksum made anew."
    entry = content["runs"][0]
    record = json.loads(entry["record"]) | changes
    entry["record"] = json.dumps({k: v for k, v in record.items() if v is not None})
    entry["done"] = json.dumps(
        json.loads(entry["done"]) | {"record.json": sha256(entry["record"].encode())}
    )


def better(content):
    "The first run's accuracy, made a little better."
    metrics = json.loads(content["runs"][0]["record"])["metrics"]
    metrics["best"]["accuracy"] = 99.0
    of_first(content, metrics=metrics)


DAMAGES = {
    "its checksum does not fit": lambda c: c["runs"][0].update(
        record=c["runs"][0]["record"].replace("1", "2", 1)
    ),
    "it has no history": lambda c: of_first(c, history=None),
    "it has no metrics": lambda c: of_first(c, metrics=[1]),
    "another run than its folder says": lambda c: of_first(
        c, run=json.loads(c["runs"][1]["record"])["run"]
    ),
    "its best.accuracy = 120 is no percentage": lambda c: of_first(
        c, metrics={"best": {"accuracy": 120}}
    ),
    "its last.loss is no number": lambda c: of_first(c, metrics={"last": {"loss": float("nan")}}),
    "its folder is not a run's": lambda c: c["runs"][0].update(
        folder="runs/../../../tmp/x-0123456789ab"
    ),
    "it cannot be read": lambda c: c["runs"][0].update(record=3),
    "is there twice": lambda c: c["runs"].append(c["runs"][0]),
    "its place is not a measurement's": lambda c: c["measurements"][0].update(
        file="/etc/x-0123456789ab.json"
    ),
    "another measurement": lambda c: c["measurements"][0].update(
        file="measurements/x-0123456789ab.json"
    ),
    "it has no name, spec, environment, value": lambda c: c["measurements"][0].update(text="{}"),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_damage_is_refused_and_nothing_is_written(there, tmp_path, said):
    file = packed(there, DAMAGES[said])
    with pytest.raises(BadInput, match=said) as e:
        records.merge([file], tmp_path / "here")
    assert (
        "\n" not in str(e.value) and str(file) in str(e.value) and not (tmp_path / "here").exists()
    )


def test_every_flipped_bit_of_a_file_is_noticed(there, tmp_path):
    import random

    content, draw = (
        records.export(there, tmp_path / "records.json.gz").read_bytes(),
        random.Random(0),
    )
    file = tmp_path / "flipped.json.gz"
    whole = json.loads(gzip.decompress(content))
    for _ in range(100):
        at = draw.randrange(8 * len(content))
        damaged = bytearray(content)
        damaged[at // 8] ^= 1 << at % 8
        file.write_bytes(damaged)
        try:
            assert records.read(file) == whole  # a bit of gzip's own header, which says nothing
        except BadInput as e:
            assert "\n" not in str(e)
    for size in range(0, len(content), len(content) // 20):
        file.write_bytes(content[:size])
        with pytest.raises(BadInput, match="damaged"):
            records.read(file)


def test_a_different_result_is_not_overwritten(there, tmp_path):
    here = tmp_path / "here"
    records.merge([packed(there)], here)
    before = contents(here)
    extra = packed(there, better)
    with pytest.raises(BadInput, match=r"differs from the record of that run .*nothing was merged"):
        records.merge([extra], here)
    assert contents(here) == before
    with pytest.raises(BadInput, match="another of these files"):
        records.merge([records.export(there, tmp_path / "true.json"), extra], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_another_machines_record_of_the_same_result_is_no_conflict(there, tmp_path):
    here = tmp_path / "here"
    records.merge([packed(there)], here)
    slower = lambda content: of_first(content, cost={"seconds": 9e9, "device": "cuda"})
    assert records.merge([packed(there, slower)], here)["present"] == 4


def test_a_different_measurement_is_not_overwritten(there, tmp_path):
    here = tmp_path / "here"
    records.merge([packed(there)], here)
    file = next(here.glob("measurements/*.json"))
    kept = json.loads(file.read_text())
    kept["value"]["accuracy"] += 2
    file.write_text(
        json.dumps(kept | {"sha256": sha256(json.dumps(kept["value"], sort_keys=True).encode())})
    )
    with pytest.raises(BadInput, match="differs from that measurement"):
        records.merge([packed(there)], here)


def test_a_damaged_record_does_not_get_out(there, tmp_path):
    record = next(there.glob("runs/*/*/*/record.json"))
    record.write_text(record.read_text().replace("1", "2", 1))
    with pytest.raises(BadInput, match="its checksum does not fit: remove it"):
        records.export(there, tmp_path / "records.json")
    assert not (tmp_path / "records.json").exists()


def test_the_command(there, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path / "outputs"))
    file = str(tmp_path / "records.json.gz")
    assert main(["records", "export", file]) == 2 and "no finished run" in capsys.readouterr().err
    shutil.copytree(there, tmp_path / "outputs" / "smoke")
    assert main(["records", "export", file]) == 0
    assert main(["records", "merge", file, "--preset", "reference/cifar10-cpu"]) == 0
    assert "3 runs and 1 measurements are new, 0 were there already" in capsys.readouterr().out
    assert main(["records", "merge", file, "--preset", "reference/cifar10-cpu"]) == 0
    assert "0 runs and 0 measurements are new, 4 were there already" in capsys.readouterr().out
    bad = packed(there, better)
    for words in (["merge", str(bad)], ["merge", str(tmp_path / "none")], ["export", file, file]):
        assert main(["records", *words]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and err.startswith("thesis-repro: ")
