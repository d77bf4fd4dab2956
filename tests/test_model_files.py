"""Trained networks for other programs: each file is read back, and none is left half written."""

import resource

import pytest
import torch
from test_cli import TINY

import thesis_repro
from thesis_repro import model_files, models, paths, settings
from thesis_repro.cli import main
from thesis_repro.files import BadInput, Unwritable
from thesis_repro.model_files import KINDS, one_run, runs_of, save_model
from thesis_repro.store import Store

SHAPE = (3, 16, 16)


@pytest.fixture
def net():
    return models.build("resnet18", 10, 0.03, seed=1).eval()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "A preset in which one run of table 7.1 has been made."
    folder = tmp_path_factory.mktemp("project")
    text = (paths.root() / "settings.ini").read_text(encoding="utf-8")
    (folder / "settings.ini").write_text(text + TINY, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THESIS_REPRO_SETTINGS", str(folder / "settings.ini"))
        patch.setenv("THESIS_REPRO_OUTPUTS", str(folder / "outputs"))
        preset = settings.load("tiny", 7)
        run = one_run(preset, "7.1", "mixup", "Last / CIFAR-10", 0)
        Store(preset).ensure([run])
        yield Store(preset), run


def test_what_is_written_is_what_other_programs_read(net, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    safetensors = pytest.importorskip("safetensors.torch")
    files = {k: save_model(net, tmp_path / f"net{k}", SHAPE) for k in KINDS}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "net.pt", "net.safetensors"]
    x = torch.rand(5, *SHAPE)
    with torch.no_grad():
        wanted = net(x)
    for state in (torch.load(files[".pt"]), safetensors.load_file(files[".safetensors"])):
        other = models.build("resnet18", 10, 0.03, seed=2).eval()
        other.load_state_dict(state)
        with torch.no_grad():
            assert torch.equal(other(x), wanted)
    assert b".py" not in files[".onnx"].read_bytes()  # no line of code, no folder of this machine
    session = onnxruntime.InferenceSession(str(files[".onnx"]))
    said = session.run(None, {"images": x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(said), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("suffix", KINDS)
def test_a_file_that_reads_back_as_another_network_is_not_left(net, tmp_path, monkeypatch, suffix):
    monkeypatch.setitem(KINDS, suffix, (lambda net, path, x: path.touch() or 0.5, 0.1))
    with pytest.raises(BadInput, match="another network"):
        save_model(net, tmp_path / f"net{suffix}", SHAPE)
    assert not list(tmp_path.iterdir())


def test_state_dicts_that_differ_are_apart(net):
    state = net.state_dict()
    assert model_files._furthest(state, state) == 0
    assert model_files._furthest(state, {**state, "more": torch.ones(1)}) == float("inf")
    key = next(k for k, v in state.items() if v.is_floating_point())
    assert model_files._furthest(state, {**state, key: state[key] + 1}) > 0


def test_an_unknown_kind_and_a_place_that_cannot_be_written_are_one_line(net, tmp_path):
    with pytest.raises(BadInput, match=r"net.h5: must end in .pt, .safetensors, .onnx"):
        save_model(net, tmp_path / "net.h5", SHAPE)
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot be written"):
        save_model(net, tmp_path / "file" / "net.pt", SHAPE)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_full_disk_is_one_line(net, tmp_path, suffix):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(Unwritable, match="cannot be written"):
            save_model(net, tmp_path / f"net{suffix}", SHAPE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_a_missing_library_names_the_extra(net, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(BadInput, match=r"pip install 'thesis-repro\[export\]'"):
        save_model(net, tmp_path / "net.onnx", SHAPE)


def test_the_network_of_a_tables_cell_is_an_ordinary_module(tiny):
    store, run = tiny
    net = thesis_repro.load_model("7.1", "mixup", 0, "Last / CIFAR-10", preset="tiny")
    assert isinstance(net, torch.nn.Module) and not net.training
    x, _ = store.batch(run, 4)
    with torch.no_grad():
        assert torch.equal(net(x), store.weights(run)(x))
        for named in (run.key, run.name):
            assert torch.equal(thesis_repro.load_model(named, preset="tiny")(x), net(x))
    with pytest.raises(
        BadInput,
        match=r"2 runs match: say --seed too: mixup \(CIFAR-10, seed 0\); mixup \(.*, seed 1\)",
    ):
        one_run(store.preset, "7.1", "mixup", "Last / CIFAR-10")
    with pytest.raises(BadInput, match="table 7.1: no row Mixdown: rows are Baseline"):
        runs_of(store.preset, "7.1", "Mixdown")
    with pytest.raises(BadInput, match="there is no such run at preset tiny"):
        thesis_repro.load_model("7.1", "AIP", 0, "Last / CIFAR-10", preset="tiny")


def test_the_command_writes_a_file_and_says_how_it_is_read(tiny, tmp_path, capsys):
    store, run = tiny
    words = ["export", run.key, "--preset", "tiny", "--to", str(tmp_path / "net.pt")]
    assert main(words) == 0
    said = capsys.readouterr().out
    x, _ = store.batch(run, 4)
    shape = ", ".join(map(str, x.shape[1:]))
    assert "read back" in said and f"input: images (n, {shape}), float32 in [0, 1]" in said
    for suffix in (".pt", ".safetensors"):
        assert main([*words[:-1], str(tmp_path / f"net{suffix}")]) == 0
        space = {}
        for line in capsys.readouterr().out.splitlines()[-2:]:
            exec(line, space)
        with torch.no_grad():
            torch.testing.assert_close(space["net"](x), store.weights(run)(x))
    assert main([*words[:-1], str(tmp_path / "net.h5")]) == 2
    assert "must end in" in capsys.readouterr().err
    assert main(["export", "7.1", *words[2:]]) == 2
    assert "runs match: say --row and --column and --seed too: " in capsys.readouterr().err


@pytest.mark.parametrize("typed", ["TRADES (1/λ = 6)", "trades (1/? = 6)", "TRADES (1/Î» = 6)"])
def test_a_row_is_meant_where_its_letters_cannot_be_typed(typed):
    "In ISO-8859-1 a λ is shown as ?, and one that is typed arrives as two other letters."
    preset = settings.load("smoke", "5")
    meant = runs_of(preset, "5.2", typed, "PGD-20")
    assert meant == runs_of(preset, "5.2", "TRADES (1/λ = 6)", "PGD-20")
    assert {r.label for r in meant} == {"TRADES (1/λ = 6)"}
    with pytest.raises(BadInput, match=r"table 5.2: no row TRADES \(6\): rows are"):
        runs_of(preset, "5.2", "TRADES (6)")


def test_a_row_is_meant_by_a_part_of_it_and_a_column_by_its_data_set():
    "`--column CIFAR-10` was refused in table 7.1, where Best and Last have the same run."
    seven, five = settings.load("smoke", "7"), settings.load("smoke", "5")
    run = one_run(seven, "7.1", "AIP", "CIFAR-10", 0)
    assert run == one_run(seven, "7.1", "AIP", "Last / CIFAR-10", 0)
    [hard] = runs_of(five, "5.1", "M2AT", "CIFAR-10")  # its columns are attacks
    assert (hard.label, hard.part) == ("CIFAR-10 / M2AT", "CIFAR-10")
    parts = {r.part for r in runs_of(seven, "7.1", "AIP", "Best")}
    assert parts == {"CIFAR-10", "CIFAR-100", "SVHN", "Tiny ImageNet"}
    for asked in ("CIFAR", "PGD"):
        with pytest.raises(BadInput, match=f"table 7.1: no column {asked}: columns are Last / CI"):
            runs_of(seven, "7.1", "AIP", asked)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            ("5.1", "BAT"),
            "CIFAR-10 / BAT is only quoted .*: rows with runs are CIFAR-10 / Standard",
        ),
        (("virtual_positives.1", "Proxy-NCA"), "Proxy-NCA is only quoted"),
        (("6.1", "MAIL", "AA"), "no run: AutoAttack is switched off at preset smoke"),
        (("7.5",), "its numbers are not those of runs: thesis-repro table 7.5 makes it"),
        (("5.1", "M2AT", None, 3), "no seed 3: preset smoke has seed 0: --seeds 4 has it too"),
        (("5.1", "M2AT", None, -1), "no seed -1: .*: they begin with 0"),
    ],
)
def test_what_has_no_run_is_told_in_one_line_with_what_there_is(asked, said):
    chapter = asked[0].partition(".")[0]
    with pytest.raises(BadInput, match=said) as e:
        runs_of(settings.load("smoke", chapter), *asked)
    assert "\n" not in str(e.value)


def test_a_seed_beyond_the_presets_is_loaded_where_it_was_trained(tiny):
    with pytest.raises(BadInput, match="mixup-seed-5-.*: there is no such run at preset tiny"):
        thesis_repro.load_model("7.1", "mixup", 5, "Last / CIFAR-10", preset="tiny")
