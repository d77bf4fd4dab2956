"""What computes, on the device that was asked for (`pytest --device cuda`), against the CPU.

On a CPU both sides are the CPU, but for what a GPU does by other code: windows of images. There
these tests show that they can run; on a GPU they are the first to be asked (`first_minutes`).
"""

import ast
import dataclasses
import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_waiting import GANS, METHODS
from waiting import add_tiny

from thesis_repro import device_agreement, devices, first_minutes, images, models, paths, settings
from thesis_repro.adversarial import Adversarial
from thesis_repro.aip import SEARCHES
from thesis_repro.attacks import FGSM, PGD, MomentumFGSM, distance
from thesis_repro.draws import Draws
from thesis_repro.images import OnDisk, batches, pixels, synthetic_images
from thesis_repro.mixup import Plain
from thesis_repro.ratio_search import pairs_at
from thesis_repro.recipes import SGD, Classify
from thesis_repro.robustness import evaluate, robust_accuracy
from thesis_repro.strong_attacks import APGD, CarliniWagner

NOISE = synthetic_images(16, 16)


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    "An architecture of two blocks; products in float32."
    add_tiny(monkeypatch)
    with devices.arithmetic("fp32"):
        yield


def network(device, dtype=torch.float64):
    return models.build("tiny", 10).to(device, dtype).eval()


def on(device, dtype=torch.float64):
    return pixels(NOISE.x_train).to(device, dtype), NOISE.y_train.to(device)


def test_draws_are_the_same_numbers_everywhere(device):
    here, there = (
        [
            draws.tensor("a", lambda g: g.random(5), d),
            draws.scheduled(lambda progress: 3 * progress, d),
            draws.places(d),
        ]
        for draws, d in ((Draws(3, 1, 2, 0.25, torch.arange(7)), d) for d in ("cpu", device))
    )
    assert all(torch.equal(a, b.cpu()) for a, b in zip(here, there, strict=True))
    assert {t.device.type for t in there} == {torch.device(device).type}


def test_noise_is_a_function_of_its_place_in_a_run(device):
    def drawn(step):
        return Draws(0, step=step).noise(
            "x", lambda g: torch.rand(9, generator=g, device=device), device
        )

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


@pytest.mark.parametrize("flip", [False, True])
def test_a_gpu_crops_and_mirrors_as_numpy_does(device, flip):
    "Its own code for it is tried on a CPU as well."
    x, draws = NOISE.x_train, Draws(1, 2, 3)
    wanted = images.crop_and_flip(x, 4, flip, draws)
    assert torch.equal(images.crop_and_flip(x.to(device), 4, flip, draws).cpu(), wanted)
    highs = (9, 9, 1 + flip)
    places = draws.tensor(
        "augment", lambda g: np.stack([g.integers(0, h, len(x)) for h in highs]), device
    )
    assert torch.equal(images._windows_torch(x.to(device), 4, *places).cpu(), wanted)


@pytest.mark.parametrize("streamed", [False, True])
def test_batches_are_the_same_everywhere(device, streamed):
    x = NOISE.x_train
    source = OnDisk(x.permute(0, 2, 3, 1).contiguous().numpy(), torch.arange(16).numpy())
    there = dataclasses.replace(NOISE, x_train=source if streamed else x).to(device)
    both = zip(batches(NOISE, 5, Draws(0)), batches(there, 5, Draws(0)), strict=True)
    for (_, a, y), (_, b, z) in both:
        torch.testing.assert_close(b.cpu(), a, rtol=0, atol=1e-6)
        assert torch.equal(z.cpu(), y)
        assert {b.device.type, z.device.type} == {torch.device(device).type}


ATTACKS = {
    "FGSM": FGSM(),
    "PGD": PGD(start="none"),
    "L2": PGD(0.5, 0.1, 5, "l2", start="none"),
    "L1": PGD(3.0, 1.0, 5, "l1", start="none"),
    "CW-PGD": PGD(loss="cw", start="none"),
    "momentum": MomentumFGSM(),
    "Carlini and Wagner": CarliniWagner(searches=2, steps=10),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_finds_the_same_images(name, device):
    found = [ATTACKS[name](network(d), *on(d), Draws(0)).cpu() for d in ("cpu", device)]
    assert (found[0] - found[1]).abs().gt(1e-6).double().mean() < 0.01


@pytest.mark.parametrize("norm, epsilon", [("linf", 8 / 255), ("l2", 0.5), ("l1", 3.0)])
@pytest.mark.parametrize("kind", [PGD, APGD])
def test_an_attack_with_a_random_start_stays_in_its_ball(device, kind, norm, epsilon):
    if (kind, norm) == (APGD, "l1"):
        pytest.skip("APGD has no L1")
    (x, y), net = on(device, torch.float32), network(device, torch.float32)
    z = kind(epsilon, steps=4, norm=norm)(net, x, y, Draws(0))
    assert distance(z, x, norm).max() <= epsilon and 0 <= z.min() and z.max() <= 1
    assert z.device == x.device and not torch.equal(z, x)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_network_is_judged_alike(device, bf16):
    "A hit counts in float32 alone, however coarse the search was."
    nets = [network(d, torch.float32) for d in ("cpu", device)]
    y = nets[0](pixels(NOISE.x_train)).argmax(1)
    for attack in (None, PGD(1.0, 0.5, 4, start="none"), PGD(1e-6, 1e-6, 1)):
        a, b = (robust_accuracy(n, NOISE.x_train, y, attack, bf16=bf16) for n in nets)
        assert a["accuracy"] == b["accuracy"]
    a, b = (evaluate(n, NOISE.x_train, y) for n in nets)
    assert a["accuracy"] == b["accuracy"] == 100 and b["loss"] == pytest.approx(a["loss"], rel=1e-3)


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("layer", [1, 2])
def test_a_search_finds_the_same_ratios(name, layer, device):
    found = []
    for d in ("cpu", device):
        x, y = on(d)
        found.append(SEARCHES[name]()(pairs_at(network(d), x, y, layer), Draws(0)).cpu())
    assert (found[0] - found[1]).abs().gt(1e-4).sum() <= 1


SINGLE = device_agreement.SINGLE | {"parabolic"}


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_a_method_is_that_of_the_cpu(name, device):
    "With the same noise, in float64, as in float32 signs of small gradients may turn round."
    recipe, single = Classify("tiny", METHODS[name], SGD(1e-3)), name in SINGLE
    dtype, most = (torch.float32, 0.5) if single else (torch.float64, 1e-2)
    assert device_agreement.step_agrees(recipe, NOISE, device, dtype) < most


@pytest.mark.parametrize("name", GANS)
def test_a_step_of_a_gan_is_that_of_the_cpu(name, device):
    recipe = GANS[name].scaled(settings.load("smoke", device="cpu", width=0.25))
    assert device_agreement.step_agrees(recipe, synthetic_images(16, 32), device) < 1e-2


def test_a_step_that_differs_is_seen(device, monkeypatch):
    plain, real, calls = Classify("tiny", Plain(), SGD(1e-3)), device_agreement._change, []
    assert device_agreement.step_agrees(plain, NOISE, device) < 1e-4

    def other(recipe, *rest, **how):
        calls.append(recipe)
        moved = dataclasses.replace(recipe, method=Plain("bce"))
        return real(recipe if len(calls) == 1 else moved, *rest, **how)

    monkeypatch.setattr(device_agreement, "_change", other)
    assert device_agreement.step_agrees(plain, NOISE, device) > 0.1


def test_a_step_is_compared_under_the_same_noise(device, monkeypatch):
    "A GPU's generator draws other numbers than a CPU's: two honest steps would look unlike."
    seeds = itertools.count()

    def torch_generator(self, purpose, device="cpu"):
        return torch.Generator(device).manual_seed(next(seeds))

    monkeypatch.setattr(Draws, "torch", torch_generator)
    attacked = Classify("tiny", Adversarial(PGD(steps=2)), SGD(1e-3))
    assert device_agreement.step_agrees(attacked, NOISE, device, torch.float64) < 1e-4
    assert next(seeds) == 1  # the CPU's step has drawn nothing


# What only a GPU can show


@pytest.fixture
def gpu(device) -> str:
    "The GPU that was asked for."
    if torch.device(device).type != "cuda":
        pytest.skip("needs a GPU: pytest --device cuda")
    return device


def products(device, dtype, precision) -> list:
    "A product of matrices and a convolution, on a device in a precision."
    draw = torch.Generator().manual_seed(0)
    a, b, x, w = (
        torch.randn(shape, generator=draw, dtype=torch.float64).to(device, dtype)
        for shape in ((512, 512), (512, 512), (32, 64, 32, 32), (64, 64, 3, 3))
    )
    with devices.arithmetic(precision):
        made = a @ b, torch.nn.functional.conv2d(x, w, padding=1)
    return [m.cpu().double() for m in made]


def test_a_gpu_multiplies_as_it_is_told(gpu):
    "PyTorch's own float32 is TF32 in convolutions."
    if torch.cuda.get_device_capability(gpu) < (8, 0):
        pytest.skip("this GPU has no TF32")
    exact, found = products("cpu", torch.float64, "fp32"), {}
    for precision in ("fp32", "tf32"):
        made = products(gpu, torch.float32, precision)
        pairs = zip(made, exact, strict=True)
        found[precision] = [float((m - e).abs().max() / e.abs().max()) for m, e in pairs]
    assert max(found["fp32"]) < 2e-5 < 5e-5 < min(found["tf32"]) <= max(found["tf32"]) < 1e-2


def test_every_gpu_has_a_name_and_one_is_kept(gpu):
    names = devices._names()
    assert len(set(names)) == len(names) == torch.cuda.device_count() and all(names)
    mine = devices.use("cuda")
    assert mine == devices.use("cuda") and torch.cuda.current_device() == mine.index
    assert devices._taken(names[mine.index]) is None or "lock" not in devices._OWN


FAILS = """
import torch
from thesis_repro import devices
device = devices.use({device!r})
try:
    {what}
except Exception as e:
    why = devices.failure(e)
print(type(why).__name__, devices.lost(), why)
"""
LOST = "torch.zeros(3, device=device)[torch.tensor([7], device=device)].sum().item()"
FULL = "torch.empty(10**15, dtype=torch.uint8, device=device)"


@pytest.mark.parametrize(
    "what, said",
    [(LOST, "Gone True the GPU failed: CUDA error"), (FULL, "str False the GPU's memory is full")],
)
def test_a_gpu_fails_as_is_expected(gpu, what, said):
    "In a process of its own, which may lose it."
    code = FAILS.format(device=gpu, what=what)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith(said), done.stdout + done.stderr


def takes_the_device(file) -> bool:
    "Whether a test or a fixture in a file asks for the device, and not for one of a list."
    text = file.read_text("utf-8")
    for node in ast.walk(ast.parse(text)) if "device" in text else ():
        if isinstance(node, ast.FunctionDef) and "device" in [a.arg for a in node.args.args]:
            marks = " ".join(map(ast.unparse, node.decorator_list))
            wanted = node.name.startswith("test_") or "fixture" in marks
            if wanted and not re.search(r"parametrize\(\(?.[^=]*device", marks.partition("[")[0]):
                return True
    return False


def test_the_first_minutes_ask_every_file_that_takes_the_device():
    "They asked five files whose tests compute on a CPU, whatever is asked for, and not this."
    found = {f.stem for f in (paths.root() / "tests").glob("test_*.py") if takes_the_device(f)}
    assert found == {f"test_{name}" for name in first_minutes.TESTED}
