"""What a GPU does differently, seen on a machine without one: how it rounds, and who says so."""

import functools
import multiprocessing
import os
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch._dynamo
from methods import small, store_at
from samples import refused

from thesis_repro import devices, files, launch, records, runs, settings, training
from thesis_repro.aip import timed_methods
from thesis_repro.attacks import PGD
from thesis_repro.images import pixels, synthetic_images
from thesis_repro.measures import Robustness, measure
from thesis_repro.mixup import Plain
from thesis_repro.pieces import piece
from thesis_repro.recipes import Classify
from thesis_repro.robustness import robust_accuracy
from thesis_repro.training import Compute, Length

SEEN = []


def now() -> tuple:
    "How a GPU would multiply at this moment: convolutions, matrices."
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision


IEEE, TF32 = ("ieee", "ieee"), ("tf32", "tf32")


@piece
class Watched(Plain):
    "A method that notes how a GPU would multiply in its step."

    def __call__(self, model, x, y, draws):
        SEEN.append(now())
        return super().__call__(model, x, y, draws)


@dataclass(frozen=True)
class WatchedAttack:
    "An attack that notes how a GPU would multiply while it searches."

    def __call__(self, model, x, y, draws):
        SEEN.append(now())
        return x


class Watching(torch.nn.Linear):
    "A network that notes how a GPU would multiply in its passes."

    def forward(self, x):
        SEEN.append(now())
        return super().forward(x.flatten(1))


@pytest.mark.parametrize("name, how", [("fp32", IEEE), ("tf32", TF32), ("bf16", TF32)])
def test_one_place_says_how_a_gpu_multiplies(name, how):
    before = now()
    with pytest.raises(KeyError), devices.arithmetic(name):
        assert now() == how and devices.coarse("cuda") == (how == TF32)
        assert not devices.coarse("cpu")
        with devices.arithmetic("fp32"):
            assert now() == IEEE
        assert now() == how
        raise KeyError
    assert now() == before


def test_an_unknown_precision_is_refused():
    refused(lambda: devices.arithmetic("fp16").__enter__(), "precision = fp16", "fp32, tf32, bf16")


@pytest.mark.parametrize("name, how", [("fp32", IEEE), ("tf32", TF32), ("bf16", TF32)])
def test_a_run_is_trained_in_its_precision_and_judged_in_float32(tmp_path, monkeypatch, name, how):
    SEEN.clear()
    judged = []
    run = replace(small(Watched(), epochs=1), precision=name)
    recipe = type(run.recipe)
    for what in ("judge", "results"):
        plain = getattr(recipe, what)

        def noting(self, nets, images, plain=plain):
            judged.append(now())
            return plain(self, nets, images)

        monkeypatch.setattr(recipe, what, noting)
    record = store_at(tmp_path).make(run, progress=False)
    assert set(SEEN) == {how} and len(SEEN) == 3
    assert set(judged) == {IEEE} and len(judged) == 3
    assert record.cost["precision"] == name
    assert record.run.get("precision", "fp32") == name


def test_a_search_may_be_coarse_and_its_verdict_is_not():
    net, x = Watching(12, 3), torch.randint(0, 256, (4, 3, 2, 2), dtype=torch.uint8)
    SEEN.clear()
    robust_accuracy(net, x, torch.zeros(4).long(), WatchedAttack(), progress=False)
    assert SEEN[0] == IEEE and set(SEEN[1:]) <= {IEEE, TF32}
    SEEN.clear()
    y = net(x.float() / 255).argmax(1)
    SEEN.clear()
    robust_accuracy(net, x, y, WatchedAttack(), progress=False)
    assert SEEN == [IEEE, TF32, IEEE]


def test_a_sample_that_falls_in_tf32_falls_in_float32_or_not_at_all(monkeypatch):
    "Each hit of a coarse search is looked at again."
    monkeypatch.setattr("thesis_repro.attacks.coarse", lambda kind: True)
    net, x = Watching(12, 2), torch.full((4, 3, 2, 2), 127, dtype=torch.uint8)
    y = net(x.float() / 255).argmax(1)
    SEEN.clear()
    found = robust_accuracy(net, x, y, PGD(1.0, 1.0, 3, start="none"), progress=False)
    assert found["accuracy"] == 0
    assert SEEN[:4] == [IEEE, TF32, TF32, IEEE]  # as they are, at the start, a step on, confirmed


def test_a_measurement_is_made_in_float32(tmp_path):
    store, run = store_at(tmp_path), small(epochs=1)
    store.make(run, progress=False)
    with devices.arithmetic("tf32"):
        assert measure(store, "seen", {"run": run}, lambda: list(now())) == list(IEEE)
        assert Robustness(None).make(store, run)["n"] == 50


@pytest.mark.parametrize("preset", ["thesis", "fast", "smoke"])
def test_no_key_depends_on_whether_there_is_a_gpu(monkeypatch, preset):
    keys = set()
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        keys.add(runs.scaled(settings.load(preset), small()).key)
    assert len(keys) == 1


def test_the_presets_say_in_what_they_train():
    found = {name: settings.load(name).precision for name in ("thesis", "fast", "smoke")}
    assert found == {"thesis": "fp32", "fast": "bf16", "smoke": "fp32"}


# Which GPU


@pytest.fixture
def machine(tmp_path, monkeypatch):
    "A function that begins a process which sees these GPUs and takes one: its number, the process."
    context, begun = multiprocessing.get_context("fork"), []
    monkeypatch.setattr(devices, "SHARED", tmp_path)

    def hold(names, device, rests, user, here, leave):
        os.umask(0o077)
        if user:
            os.setuid(user)
        torch.cuda.device_count = lambda: len(names)
        torch.cuda.get_device_properties = lambda i: SimpleNamespace(uuid=names[i])
        current = []
        torch.cuda.set_device = current.append
        preset = settings.load("smoke", device=device)
        used = devices.use(settings.device(preset))
        assert settings.device(preset).type == "cuda"  # as whatever computes asks again
        assert used == torch.device("cuda", current[-1]) == devices.use("cuda")
        if rests:
            devices.rest()
        here.send(current[-1])
        leave.recv()
        assert devices.use("cuda") == used
        here.send("the same again")
        leave.recv()

    def one(names, device="cuda", rests=False, user=0):
        here, leave = context.Pipe(), context.Pipe()
        p = context.Process(target=hold, args=(names, device, rests, user, here[1], leave[1]))
        p.start()
        begun.append(p)
        assert here[0].poll(30), "the process has taken no GPU"
        return here[0].recv(), p, here[0], leave[0]

    yield one
    for p in begun:
        p.kill()
        p.join()


def test_each_process_takes_a_gpu_of_its_own_and_a_dead_one_leaves_it(machine):
    there = ["A", "B", "C"]
    begun = [machine(there) for _ in range(3)]
    assert [b[0] for b in begun] == [0, 1, 2]
    assert machine(there)[0] in (0, 1, 2)  # more processes than GPUs share them
    begun[1][1].kill()
    begun[1][1].join()
    assert machine(there)[0] == 1


def test_a_gpu_is_known_by_its_own_name_and_not_by_its_number(machine):
    "As a second command sees them whose CUDA_VISIBLE_DEVICES names other GPUs, or another order."
    assert machine(["A", "B"])[0] == 0
    assert machine(["B", "A"])[0] == 0  # which is B
    assert machine(["A", "C"])[0] == 1  # C: A is taken


def test_a_gpu_that_is_asked_for_is_taken_and_others_keep_away(machine):
    assert machine(["A", "B", "C"], "cuda:0")[0] == 0
    assert machine(["A", "B", "C"])[0] == 1
    assert machine(["A", "B", "C"], "cuda:0")[0] == 0  # asked for, so shared
    assert machine(["A", "B", "C"])[0] == 2


def test_who_rests_leaves_its_gpu_and_goes_on_with_the_same(machine):
    _, _, here, leave = machine(["A", "B"], rests=True)
    assert machine(["A", "B"])[0] == 0
    leave.send(None)
    assert here.poll(30) and here.recv() == "the same again"


def test_a_gpu_of_another_user_is_taken_too_and_a_free_one_is_not(machine, tmp_path):
    "The folder for the locks, and the files in it, were closed by the umask of the first user."
    assert machine(["A", "B"])[0] == 0
    folder = tmp_path / "thesis-repro-gpus"
    modes = [oct(path.stat().st_mode)[-4:] for path in (folder, *folder.iterdir())]
    assert modes == ["1777", "0644"]


def test_another_user_sees_which_gpu_is_free(machine, monkeypatch):
    if os.geteuid():
        pytest.skip("needs root, who may be any user")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own are closed to others
        Path(folder).chmod(0o1777)
        monkeypatch.setattr(devices, "SHARED", Path(folder))
        there = ["A", "B", "C"]
        begun = [machine(there, user=user) for user in (65534, 65533, 65532)]
        assert [b[0] for b in begun] == [0, 1, 2]
        begun[1][1].kill()
        begun[1][1].join()
        assert machine(there, user=65531)[0] == 1  # whose file it has found there
        assert {path.stat().st_uid for path in Path(folder).rglob("?")} == {65534, 65533, 65532}


def test_links_and_what_is_not_empty_are_left_alone(tmp_path):
    "Anybody may put files into a folder that is open to all."
    mine, secret = tmp_path / "locks", tmp_path / "secret"
    secret.write_text("of this user alone")
    secret.chmod(0o600)
    mine.mkdir()
    (mine / "link").symlink_to(secret)
    (mine / "hard link").hardlink_to(secret)
    (mine / "lock").touch(0o600)
    files.shared(mine)
    assert [oct(p.stat().st_mode)[-3:] for p in (secret, mine / "lock")] == ["600", "644"]
    closed = tmp_path / "closed"
    closed.symlink_to(tmp_path)
    before = tmp_path.stat().st_mode
    files.shared(closed)
    assert tmp_path.stat().st_mode == before


def test_locks_are_of_the_machine_whatever_the_folder_for_temporary_files(tmp_path, monkeypatch):
    "A scheduler gives each job a TMPDIR of its own, and two of them took the same GPU."
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert devices.locks() == Path("/tmp/thesis-repro-gpus")
    monkeypatch.setattr(devices, "SHARED", tmp_path / "absent")
    assert devices.locks() == tmp_path / "thesis-repro-gpus"


def test_a_folder_for_locks_that_cannot_be_written_stops_nobody(machine, tmp_path):
    (tmp_path / "thesis-repro-gpus").write_text("no folder")
    assert machine(["A", "B"])[0] in (0, 1)


@pytest.fixture
def one_gpu(tmp_path, monkeypatch):
    "This process sees a GPU called A: the list of those that torch was told to use."
    told = []
    monkeypatch.setattr(devices, "SHARED", tmp_path)
    monkeypatch.setattr(devices, "_OWN", {})
    monkeypatch.setattr(devices, "_names", lambda: ["A", "B"])
    monkeypatch.setattr(torch.cuda, "set_device", told.append)
    yield told
    devices.rest()


def test_training_and_weights_use_the_gpu_of_their_process(one_gpu, tmp_path, monkeypatch):
    "What puts tensors on a device asks for this process's own, and says so to torch."
    moved = []
    store, run = store_at(tmp_path, device="cpu"), small(epochs=1)
    store.make(run, progress=False)
    there = replace(store.preset, device="cuda:1")
    monkeypatch.setattr(settings, "device", lambda preset: torch.device(preset.device))
    monkeypatch.setattr(torch.nn.Module, "to", lambda net, device, **how: moved.append(device))
    for preset in (there, replace(there, device="cuda")):
        store.preset = preset
        with pytest.raises((AttributeError, TypeError)):
            store.networks(run)
        with pytest.raises((AttributeError, TypeError)):
            training.start(run.recipe, run.data.images(), Length(1, 50), 0, Compute(preset.device))
    assert one_gpu == [1] * 4 and moved == [torch.device("cuda:1")] * 4


def test_workers_have_the_gpu_that_their_command_leaves(one_gpu, tmp_path):
    devices.use("cuda")
    assert "lock" in devices._OWN
    launch.side_by_side(store_at(tmp_path, device="cpu"), lambda *a: "", [(1,)], disable=True)
    assert "lock" not in devices._OWN and devices._OWN["index"] == 0


def test_the_environment_is_that_of_the_gpu_in_use(monkeypatch):
    "Of a machine with two different GPUs."
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: f"GPU {current[-1]}")
    for i in (0, 1):
        current.append(i)
        assert records.environment()["gpu"] == f"GPU {i}"


def test_a_networks_weights_have_the_fast_order_on_a_gpu_and_their_own_on_a_cpu(
    one_gpu, tmp_path, monkeypatch
):
    "On a CPU the order decides the last bits of what is measured."
    store, run, orders = store_at(tmp_path, device="cpu"), small(epochs=1), []
    store.make(run, progress=False)
    real = torch.nn.Module.to

    def to(net, device, memory_format):
        orders.append(memory_format)
        return real(net, "cpu")

    monkeypatch.setattr(torch.nn.Module, "to", to)
    monkeypatch.setattr(settings, "device", lambda preset: torch.device(preset.device))
    for how in ({}, {"device": "cuda:0"}, {"device": "cuda:0", "channels_last": False}):
        store.preset = replace(store.preset, **how)
        store.networks(run)
    assert orders == [torch.preserve_format, torch.channels_last, torch.preserve_format]


# A driver that cannot be used, and compiling


def test_a_driver_that_torch_cannot_use_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "_VERSION", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    auto, cpu = (settings.load("smoke", device=d) for d in ("auto", "cpu"))
    with warnings.catch_warnings(action="error"):
        assert settings.device(auto).type == "cpu"
        (tmp_path / "version").touch()
        assert settings.device(cpu).type == "cpu"
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
        assert settings.device(auto).type == "cpu"
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.warns(UserWarning, match="an NVIDIA driver: torch, built with CUDA 13.2, .* 580"):
        assert settings.device(auto).type == "cpu"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA: make setup TORCH=cuda" in devices.unused()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.unused() == ""


def test_a_compiled_network_in_segments_never_falls_back(monkeypatch):
    "Two batch sizes, two modes, and AIP's searches at every layer: more programs than torch keeps."
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    torch._dynamo.reset()
    method = timed_methods()["AIP fast"]
    recipe = Classify("preactresnet18", method, width=0.0625)
    how = Compute(compile=True, progress=False)
    t = training.start(recipe, synthetic_images(36, 8), Length(4, 8), compute=how)
    t.nets.train()
    for i in range(9):
        x, y = pixels(t.images.x_train[i : i + 8]), t.images.y_train[i : i + 8]
        x, y = (x[:4], y[:4]) if i % 3 == 2 else (x, y)
        training.step(t, x, y)
        t.at.step %= 4
    torch._dynamo.reset()
