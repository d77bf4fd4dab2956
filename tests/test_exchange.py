"""Records that travel: what comes out goes in, and nothing damaged, hostile or different does."""

import gzip
import json
import os
import random
import shutil

import numpy as np
import pytest

from thesis_repro import exchange, paths, pieces, settings
from thesis_repro.attacks import FGSM
from thesis_repro.cli import main
from thesis_repro.files import BadInput, sha256
from thesis_repro.measures import Robustness
from thesis_repro.mixup import Mixup, Plain
from thesis_repro.recipes import Classify
from thesis_repro.runs import Named, Run, key_of
from thesis_repro.store import Store, locked
from thesis_repro.training import Length


def small(seed=0, method=Plain()):
    "A run of a second."
    recipe = Classify("preactresnet18", method, width=0.03)
    return Run(Named("digits10", 100, 50, 50), recipe, Length(1, 50), seed, label="small")


RUNS = (small(), small(1), small(0, Mixup()))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    "A preset's folder with three runs and a measurement."
    store = Store(settings.load("smoke", device="cpu", jobs=1), tmp_path_factory.mktemp("original"))
    for run in RUNS:
        store.make(run, progress=False)
    Robustness(FGSM(), size=20).make(store, RUNS[0])
    return store.folder


@pytest.fixture
def there(original, tmp_path):
    "A copy of it."
    return shutil.copytree(original, tmp_path / "there")


def contents(folder):
    "Every file in a folder that counts, by its path."
    files = (p for p in folder.rglob("*") if p.is_file() and ".locks" not in p.parts)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def packed(there, change=lambda found: None, sealed=True):
    "An exported file that was changed on the way; `sealed`: and its checksum made to fit."
    content = exchange.pack(there)
    change(content["found"])
    if sealed:
        content["sha256"] = sha256(json.dumps(content["found"]).encode())
    file = there.parent / "sent.json"
    file.write_text(json.dumps(content))
    return file


def counts(runs=0, measurements=0, present=0, busy=0):
    return {"runs": runs, "measurements": measurements, "present": present, "busy": busy}


# ---- out and in


def test_what_comes_out_goes_in_byte_for_byte(there, tmp_path):
    file = exchange.export(there, tmp_path / "records.json.gz")
    assert exchange.merge([file], tmp_path / "here") == counts(3, 1)
    before = {k: v for k, v in contents(there).items() if not k.endswith((".ckpt", ".copy"))}
    assert contents(tmp_path / "here") == before
    store = Store(settings.load("smoke"), tmp_path / "here")
    of = Store(store.preset, there)
    assert [r.metrics for r in store.ensure(RUNS)] == [of.record(r).metrics for r in RUNS]


def test_the_same_records_give_the_same_file(there, tmp_path):
    files = [exchange.export(there, tmp_path / f"{name}.json.gz") for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_merging_twice_is_harmless(there, tmp_path):
    file = exchange.export(there, tmp_path / "records.json")
    exchange.merge([file], tmp_path / "here")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "here").rglob("*")}
    assert exchange.merge([file, file], tmp_path / "here") == counts(present=8)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "here").rglob("*")} == before


def test_two_machines_add_up_and_another_table_changes_nothing(there, tmp_path):
    first, other = tmp_path / "first", tmp_path / "other"
    for home, key in ((first, RUNS[0].key), (other, RUNS[1].key)):
        (kept,) = there.glob(f"runs/*/*/*{key}")
        shutil.copytree(kept, home / "runs" / "aip" / f"table_{home.name}" / kept.name)
    files = [exchange.export(home, tmp_path / f"{home.name}.json") for home in (first, other)]
    everything = exchange.export(there, tmp_path / "all.json")
    assert exchange.merge([everything], tmp_path / "here") == counts(3, 1)
    assert exchange.merge(files, tmp_path / "here") == counts(present=2)
    assert exchange.merge(files, tmp_path / "new") == counts(2)


def test_a_run_that_is_being_trained_is_left_alone(there, tmp_path):
    file, here = exchange.export(there, tmp_path / "records.json"), tmp_path / "here"
    with locked(here / "runs" / ".locks" / RUNS[1].key):
        assert exchange.merge([file], here) == counts(2, 1, busy=1)
        assert not list(here.glob(f"runs/*/*/*{RUNS[1].key}/*"))
    assert exchange.merge([file], here) == counts(1, present=3)


def test_the_place_of_a_file_of_images_is_no_difference(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8), np.arange(60) % 4
    homes = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "photos.npz"
        np.savez(file, x_train=x[8:], y_train=y[8:], x_test=x[:8], y_test=y[:8])
        recipe = Classify("preactresnet18", Plain(), width=0.03)
        run = Run(Named(f"npz:{file}", 32, 8, 8), recipe, Length(1, 16))
        store = Store(settings.load("smoke", device="cpu", jobs=1), tmp_path / name / "outputs")
        store.make(run, progress=False)
        homes.append(store.folder)
    sent = exchange.export(homes[0], tmp_path / "sent.json")
    assert exchange.merge([sent], homes[1])["present"] == 1


@pytest.mark.parametrize("differs", [False, True])
def test_a_run_that_is_finished_meanwhile_is_not_written_twice(
    there, tmp_path, monkeypatch, differs
):
    file, here = packed(there, better if differs else lambda found: None), tmp_path / "here"
    looked, found = [], exchange._there

    def late(home, entry):
        "The first look at each entry finds nothing; then another process finishes them all."
        looked.append(entry)
        if len(looked) == 5:
            shutil.copytree(there, here, dirs_exist_ok=True)
        return None if len(looked) <= 4 else found(home, entry)

    monkeypatch.setattr(exchange, "_there", late)
    assert exchange.merge([file], here) == counts(present=4 - differs, busy=int(differs))
    monkeypatch.undo()
    if differs:
        with pytest.raises(BadInput, match="differs from the one that is there"):
            exchange.merge([file], here)


def test_a_damaged_record_here_is_replaced(there, tmp_path, recwarn):
    here = tmp_path / "here"
    file = exchange.export(there, tmp_path / "records.json")
    exchange.merge([file], here)
    before = contents(here)
    (here / next(k for k in before if k.endswith("record.json"))).write_text("{")
    (here / next(k for k in before if k.startswith("measurements"))).write_bytes(b"\xff")
    assert exchange.merge([file], here) == counts(1, 1, present=2)
    assert contents(here) == before


# ---- damage


def of_first(found, **changes):
    "Change the first run's record, with the checksum in its marker made to fit."
    files = found[0]["files"]
    record = json.loads(files["record.json"]) | changes
    files["record.json"] = json.dumps({k: v for k, v in record.items() if v is not None})
    files["done"] = json.dumps({"record.json": sha256(files["record.json"].encode())})


def better(found):
    "The first run's accuracy, made a little better."
    metrics = json.loads(found[0]["files"]["record.json"])["metrics"]
    metrics["best"]["accuracy"] = 99.0
    of_first(found, metrics=metrics)


def another_run(found):
    of_first(found, run=json.loads(found[1]["files"]["record.json"])["run"])


def one_digit(found):
    text = found[0]["files"]["record.json"]
    found[0]["files"]["record.json"] = text.replace("1", "2", 1)


def one_more_file(found):
    found[0]["files"]["../../../../OWNED"] = "text"


def renamed(name):
    "Give the measurement another name."

    def change(found):
        found[-1]["files"] = {name: next(iter(found[-1]["files"].values()))}

    return change


def at(place):
    "Put the first run somewhere else."

    def change(found):
        found[0]["place"] = place

    return change


DAMAGES = {
    "its checksum does not fit": one_digit,
    "it has no history": lambda found: of_first(found, history=None),
    "it has no metrics": lambda found: of_first(found, metrics=[1]),
    "another run than its folder says": another_run,
    "its best.accuracy = 120 is not a": lambda found: of_first(
        found, metrics={"best": {"accuracy": 120}, "last": {}}
    ),
    "its metrics have no last or no best": lambda found: of_first(found, metrics={"last": {}}),
    "its last.loss is not finite": lambda found: of_first(
        found, metrics={"last": {"loss": float("nan")}, "best": {}}
    ),
    "its place is not a run's": at("runs/../../../tmp/x-0123456789ab"),
    "place is not a run's": at("/tmp/a/b/x-0123456789ab"),
    "not a run's": one_more_file,
    "it cannot be read": lambda found: found[0]["files"].update({"record.json": 3}),
    "it cannot be read: KeyError": lambda found: found[0].pop("place"),
    "it cannot be read: TypeError": lambda found: found.insert(0, 5),
    "it cannot be read: Unicode": lambda found: of_first(found, repeatable="\ud800"),
    "it is there twice": lambda found: found.append(found[0]),
    "its place is not a measurement's": renamed("/etc/x-0123456789ab.json"),
    "place is not a measurement's": renamed("../x-0123456789ab.json"),
    "it is another measurement than": renamed("x-0123456789ab.json"),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_damage_is_refused_and_nothing_is_written(there, tmp_path, said):
    file = packed(there, DAMAGES[said])
    with pytest.raises(BadInput, match=said) as e:
        exchange.merge([file], tmp_path / "a" / "b" / "here")
    message = str(e.value)
    assert message.isprintable() and str(file) in message and not (tmp_path / "a").exists()


def test_every_flipped_bit_of_a_file_is_noticed(there, tmp_path):
    content = exchange.export(there, tmp_path / "records.json.gz").read_bytes()
    file, draw = tmp_path / "flipped.json.gz", random.Random(0)
    whole = exchange.read(tmp_path / "records.json.gz")
    for _ in range(100):
        damaged, where = bytearray(content), draw.randrange(8 * len(content))
        damaged[where // 8] ^= 1 << where % 8
        file.write_bytes(damaged)
        try:
            assert exchange.read(file) == whole  # a bit of gzip's own header that means nothing
        except BadInput as e:
            assert "\n" not in str(e)
    for size in range(0, len(content), len(content) // 20):
        file.write_bytes(content[:size])
        with pytest.raises(BadInput, match="damaged"):
            exchange.read(file)


def test_a_different_result_is_not_overwritten(there, tmp_path):
    here = tmp_path / "here"
    exchange.merge([packed(there)], here)
    before, extra = contents(here), packed(there, better)
    with pytest.raises(BadInput, match=r"differs from the one that is there .*nothing was merged"):
        exchange.merge([extra], here)
    assert contents(here) == before
    honest = exchange.export(there, tmp_path / "true.json")
    with pytest.raises(BadInput, match="differs"):
        exchange.merge([honest, extra], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_run_under_two_labels_is_one_run(there, tmp_path):
    "The second of two files was not compared with the first, and its other numbers were present."

    def relabelled(found):
        found[0]["place"] = f"runs/another/table/other-label-{found[0]['place'][-12:]}"

    file, new = exchange.export(there, tmp_path / "all.json"), tmp_path / "new"
    with pytest.raises(BadInput, match=r"other-label.*: differs .*nothing was merged"):
        exchange.merge([file, packed(there, lambda f: (better(f), relabelled(f)))], new)
    assert not new.exists()
    assert exchange.merge([file, packed(there, relabelled)], new) == counts(3, 1, present=4)


def test_a_different_measurement_is_not_overwritten(there, tmp_path):
    exchange.merge([packed(there)], tmp_path / "here")
    (file,) = there.glob("measurements/*.json")
    kept = json.loads(file.read_text())
    kept["value"]["accuracy"] += 2
    parts = [kept[k] for k in ("name", "on", "code", "environment", "value")]
    digest = sha256(json.dumps(parts, sort_keys=True).encode())
    file.write_text(json.dumps(kept | {"sha256": digest}))
    with pytest.raises(BadInput, match=r"measurements/robustness.* differs from the one"):
        exchange.merge([packed(there)], tmp_path / "here")


def test_another_machines_record_of_the_same_result_is_no_conflict(there, tmp_path):
    exchange.merge([packed(there)], tmp_path / "here")

    def slower(found):
        of_first(found, cost={"seconds": 9e9, "device": "cuda"}, environment={})

    assert exchange.merge([packed(there, slower)], tmp_path / "here") == counts(present=4)


def test_a_damaged_record_does_not_get_out(there, tmp_path):
    record, sound = next(there.glob("runs/*/*/*/record.json")), exchange.pack(there)
    record.write_text(record.read_text().replace("1", "2", 1))
    assert exchange.pack(there) == sound, "it has a copy, and need not be made again"
    record.with_name("record.json.copy").unlink()
    record.write_text(record.read_text().replace("1", "2", 1))
    with pytest.raises(BadInput, match="its checksum does not fit: remove it"):
        exchange.export(there, tmp_path / "records.json")
    assert not (tmp_path / "records.json").exists()


# ---- hostile files


def described(spec):
    "Let the first record describe another run, in the folder that belongs to that one."

    def change(found):
        of_first(found, run=spec)
        found[0]["place"] = found[0]["place"][:-12] + key_of(spec)

    return change


def with_method(method):
    return pieces.specification(RUNS[0]) | {
        "recipe": {"is": "Classify", "network": "resnet18", "method": method}
    }


OWNED = "touch OWNED"
HOSTILE = {
    "os.system": {"is": "os.system", "command": OWNED},
    "no piece": {"class": "os.system", "command": OWNED},
    "'subprocess.run'": with_method({"is": "subprocess.run", "args": OWNED}),
    "'Path'": with_method([{"is": "Path", "path": "/etc/passwd"}]),
    r"\['os'\]": with_method({"is": ["os"]}),
    "without its checksum": with_method({"is": "Named", "name": "npz:/dev/zero"}),
}


@pytest.mark.parametrize("said", HOSTILE)
def test_a_description_that_names_anything_else_is_not_let_in(
    there, tmp_path, monkeypatch, capsys, said
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setattr(os, "system", lambda *a: (tmp_path / "OWNED").write_text("called"))
    file = packed(there, described(HOSTILE[said]))
    with pytest.raises(BadInput, match=said) as e:
        exchange.merge([file], tmp_path / "here")
    assert str(e.value).isprintable() and not (tmp_path / "here").exists()
    assert main(["records", "merge", str(file)]) == 2
    (tmp_path / "run.json").write_text(json.dumps(HOSTILE[said]))
    assert main(["run", str(tmp_path / "run.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 2 and not (tmp_path / "OWNED").exists()


def test_a_hostile_record_that_is_there_already_is_not_obeyed(there, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path / "outputs"))
    spec = {"is": "os.system", "command": f"touch {tmp_path / 'OWNED'}"}
    file = packed(there, described(spec))
    monkeypatch.setattr(exchange, "_foreign", lambda spec: "")
    exchange.merge([file], tmp_path / "outputs" / "smoke")
    for words in (["attack", key_of(spec)], ["records", "accept"]):
        assert main(words) == 2
        assert "os.system: unknown piece" in capsys.readouterr().err
    assert main(["runs"]) == 0 and not (tmp_path / "OWNED").exists()


def test_a_persons_own_piece_is_let_in_where_that_person_names_its_file(there, tmp_path):
    file = packed(there, described(with_method({"is": "Softened", "mass": 0.2})))
    with pytest.raises(BadInput, match=r"'Softened', .* your own pieces need --pieces"):
        exchange.merge([file], tmp_path / "here")
    own = tmp_path / "mine.py"
    lines = ("from thesis_repro.pieces import piece", "@piece", "class Softened: mass: float = 0.1")
    own.write_text("\n".join(lines))
    try:
        pieces.load_pieces(own)
        assert exchange.merge([file], tmp_path / "here") == counts(3, 1)
    finally:
        pieces.REGISTRY.pop("Softened", None)


def test_a_small_file_that_unpacks_to_a_large_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "LIMIT", 2_000_000)
    bomb = tmp_path / "records.json.gz"
    bomb.write_bytes(gzip.compress(b" " * 20_000_000))
    assert bomb.stat().st_size < 30_000
    with pytest.raises(BadInput, match="more than 2 MB"):
        exchange.read(bomb)


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "[]",
        "{}",
        DEEP,
        '{"format": 5}',
        '{"format": "thesis_repro records 2", "found": 5, "sha256": ""}',
        f'{{"format": "thesis_repro records 2", "found": [{"9" * 5000}], "sha256": ""}}',
        '{"format": "thesis_repro records 1", "runs": []}',
    ],
)
def test_what_is_no_file_of_records_is_refused_in_one_line(tmp_path, text):
    file = tmp_path / "records.json"
    file.write_text(text)
    with pytest.raises(BadInput, match="not a file of records, or damaged") as e:
        exchange.read(file)
    assert str(e.value).isprintable() and len(str(e.value)) < 500


def test_what_a_newer_version_adds_does_no_harm(there, tmp_path):
    def newer(found):
        of_first(found, power={"watts": 300}, environment={})

    here = tmp_path / "here"
    assert exchange.merge([packed(there, newer)], here) == counts(3, 1)
    assert Store(settings.load("smoke"), here).record(RUNS[0]).environment == {}


def test_the_command(there, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path / "outputs"))
    file, other = str(tmp_path / "records.json.gz"), ["--preset", "reference/mixing-cpu"]
    assert main(["records", "export", file]) == 2 and "no finished run" in capsys.readouterr().err
    shutil.copytree(there, tmp_path / "outputs" / "smoke")
    assert main(["records", "export", file]) == 0
    assert main(["records", "merge", file, *other]) == 0
    assert "3 runs and 1 measurements are new, 0 were there already" in capsys.readouterr().out
    assert main(["records", "merge", file, *other]) == 0
    assert "0 runs and 0 measurements are new, 4 were there already" in capsys.readouterr().out
    bad = str(packed(there, better))
    for words in (["merge", bad, *other], ["merge", f"{tmp_path}/none"], ["export", file, file]):
        assert main(["records", *words]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and err.startswith("thesis-repro: ")


@pytest.mark.parametrize("commit", ["0123456789ab-dirty", "unknown", None, "0123456789ab"])
def test_a_reference_takes_in_nothing_that_was_not_committed(
    there, tmp_path, capsys, monkeypatch, commit
):
    def made_by(found):
        of_first(found, environment={"commit": commit} if commit else {})

    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(paths.root() / name, tmp_path)
    monkeypatch.delenv("THESIS_REPRO_OUTPUTS", raising=False)
    monkeypatch.setenv("THESIS_REPRO_ROOT", str(tmp_path))
    for entry in there.glob("runs/**/record.json"):
        found = json.loads(entry.read_text()) | {"environment": {"commit": "0123456789ab"}}
        entry.write_text(json.dumps(found))
        marks = json.loads((entry.parent / "done").read_text())
        marks["record.json"] = sha256(entry.read_bytes())
        (entry.parent / "done").write_text(json.dumps(marks))
    shutil.rmtree(there / "measurements")
    file, home = str(packed(there, made_by)), tmp_path / "outputs/reference/mixing-cpu"
    code = main(["records", "merge", file, "--preset", "reference/mixing-cpu"])
    if commit == "0123456789ab":
        assert code == 0 and len([*home.glob("runs/**/record.json")]) == 3
        return
    assert code == 2 and not home.exists()
    said = f"its commit is {commit or 'unknown'}, and a reference is made by committed code"
    assert said in capsys.readouterr().err


def test_a_damaged_byte_is_named(tmp_path):
    home = tmp_path / "runs" / "t" / "x" / "run-0123456789ab"
    home.mkdir(parents=True)
    (home / "record.json").write_bytes(b'{"a": "\xff"}')
    (home / "done").write_text("{}")
    with pytest.raises(BadInput, match=r"record\.json: damaged: remove it"):
        exchange.pack(tmp_path)
