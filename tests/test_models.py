"""Networks: published sizes by another formula, exact segments, batch norm without a trace."""

import copy
import math
import os
import subprocess
import sys
import weakref
from collections import Counter

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from thesis_repro import models
from thesis_repro.files import BadInput
from thesis_repro.models import build

NAMES = list(models.ARCHITECTURES)


@pytest.fixture(autouse=True)
def on(device):
    "Networks and tensors that a test makes are on the device that was asked for."
    with torch.device(device):
        yield


def count(name, **options):
    with torch.device("meta"):  # shapes only: a wide network at full width has 46 million values
        mean = std = (0.5,)
        a = models.ARCHITECTURES[name]
        o = {"classes": 10, "width": 1.0, "channels": 3, "mean": mean, "std": std} | options
        return models.parameter_count(nn.Sequential(*models._segments(a, **o)))


def snapshot(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(model, before):
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[k], v) for k, v in before.items())


def randomise(model, seed=0):
    "Batch norms as after some training: scales, shifts and running statistics that matter."
    g = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            for t, low in (
                (m.weight, 0.5),
                (m.running_var, 0.5),
                (m.bias, -0.5),
                (m.running_mean, -0.5),
            ):
                t.data = low + torch.rand(t.shape, generator=g, device="cpu").to(t.device)
    return model


# ---- the published numbers of parameters


@pytest.mark.parametrize(
    "name, published",
    [
        ("resnet18", 11_173_962),
        ("preactresnet18", 11_171_146 + 2 * 512),  # public counts are without the last batch norm
        ("preactresnet34", 21_279_306 + 2 * 512),
        ("wrn28_10", 36_479_194),
        ("wrn34_10", 46_160_474),
        ("vgg16", 14_728_266 - 4_224),  # public counts are with biases before the batch norms
    ],
)
def test_published_counts(name, published):
    assert count(name) == published


def by_hand(blocks, widths, stem, classes, channels, pre):
    "Counted layer by layer: 9ab for a 3 × 3 convolution, ab for a 1 × 1, 2a for a batch norm."
    total, a = 9 * channels * stem + (0 if pre else 2 * stem), stem
    for i, (n, b) in enumerate(zip(blocks, widths, strict=True)):
        changes = a != b or i > 0
        total += 9 * a * b + 9 * b * b + (2 * a + 2 * b if pre else 4 * b)  # the first block
        total += changes * (a * b + (0 if pre else 2 * b))  # its shortcut
        total += (n - 1) * (18 * b * b + 4 * b)
        a = b
    return total + (2 * a if pre else 0) + a * classes + classes


@pytest.mark.parametrize("classes, channels", [(10, 3), (200, 1)])
@pytest.mark.parametrize(
    "name, blocks, widths, stem, width",
    [
        ("resnet18", (2, 2, 2, 2), (64, 128, 256, 512), 64, 1.0),
        ("preactresnet34", (3, 4, 6, 3), (64, 128, 256, 512), 64, 1.0),
        ("preactresnet34", (3, 4, 6, 3), (8, 16, 32, 64), 8, 0.125),
        (
            "preactresnet18",
            (2, 2, 2, 2),
            (8, 8, 8, 8),
            8,
            0.01,
        ),  # equal channels still need a strided shortcut
        ("wrn28_10", (4, 4, 4), (160, 320, 640), 16, 1.0),
        (
            "wrn28_10",
            (4, 4, 4),
            (16, 32, 64),
            16,
            0.1,
        ),  # WRN-28-1: equal channels and stride 1, no first shortcut
        ("wrn34_10", (5, 5, 5), (40, 80, 160), 16, 0.25),
    ],
)
def test_counts_by_hand(name, blocks, widths, stem, width, classes, channels):
    hand = by_hand(blocks, widths, stem, classes, channels, pre=name != "resnet18")
    assert count(name, width=width, classes=classes, channels=channels) == hand


def test_depths_are_as_named():
    "A ResNet counts stem and classifier; a wide one (6n + 4) its stem and three shortcuts."
    depths = {
        n: 2 * sum(a.blocks) + (4 if n.startswith("wrn") else 2)
        for n, a in models.ARCHITECTURES.items()
        if n != "vgg16"
    }
    named = {
        "resnet18": 18,
        "preactresnet18": 18,
        "preactresnet18_stride2": 18,
        "preactresnet34": 34,
        "wrn28_10": 28,
        "wrn34_10": 34,
    }
    assert depths == named


def test_vgg16_has_the_convolutions_of_torchvisions():
    from torchvision.models import vgg16

    with torch.device("meta"):
        a, o = models.ARCHITECTURES["vgg16"], {"classes": 10, "width": 1.0, "channels": 3}
        ours = nn.Sequential(*models._segments(a, **o, mean=(0.5,), std=(0.25,)))
        theirs = vgg16().features

    def layers(net):
        kinds = (nn.Conv2d, nn.MaxPool2d)
        found = [m for m in net.modules() if isinstance(m, kinds)]
        return [tuple(m.weight.shape) if isinstance(m, nn.Conv2d) else "pool" for m in found]

    assert layers(ours) == layers(theirs) and layers(ours).count("pool") == 5


# ---- what a network computes


NARROW = """
import torch
import torch.nn.functional as F
from thesis_repro import models

torch.set_num_threads(2)
for inputs in range(1, 18):
    for n, side in ((8, 8), (32, 5), (5, 16)):
        conv = models._conv(inputs, 8, 1, 2).to(memory_format=torch.channels_last)
        x = torch.randn(n, inputs, side, side).to(memory_format=torch.channels_last)
        conv(x).square().sum().backward()
        weight = conv.weight.detach().double().requires_grad_()
        F.conv2d(x.double(), weight, None, 2).square().sum().backward()
        torch.testing.assert_close(conv.weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-4)
"""


@pytest.mark.parametrize("processor", ["its own", "AVX2"])
def test_the_gradient_of_a_narrow_shortcut_is_that_of_float64(processor):
    "oneDNN's kernels are wrong below 8 (AVX2) or 16 channels, and end the process sooner or later."
    env = os.environ | ({"ONEDNN_MAX_CPU_ISA": "AVX2"} if processor == "AVX2" else {})
    found = subprocess.run([sys.executable, "-c", NARROW], env=env, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def reference(model, x, pre, wide, first=1):
    "The logits in plain functional calls, from the weights alone, in evaluation mode."
    w = model.state_dict()

    def norm(h, key):
        mean, var = w[key + "running_mean"], w[key + "running_var"]
        shape = (1, -1, 1, 1)
        h = (h - mean.view(shape)) / torch.sqrt(var.view(shape) + 1e-5)
        return h * w[key + "weight"].view(shape) + w[key + "bias"].view(shape)

    def conv(h, key, stride=1):
        weight = w[key + "weight"]
        return F.conv2d(h, weight, stride=stride, padding=weight.shape[-1] // 2)

    h = conv((x - 0.5) / 0.25, "stages.0.1.", first)
    start = 2
    if not pre:
        h, start = torch.relu(norm(h, "stages.0.2.")), 4
    for s in range(3 if wide else 4):
        j = start if s == 0 else 0
        while f"stages.{s}.{j}.conv1.weight" in w:
            key, halved = f"stages.{s}.{j}.", s > 0 and j == 0
            stride = 2 if halved else 1
            if pre:
                a = torch.relu(norm(h, key + "norm1."))
                path = conv(a, key + "shortcut.", stride) if key + "shortcut.weight" in w else h
                h = path + conv(
                    torch.relu(norm(conv(a, key + "conv1.", stride), key + "norm2.")),
                    key + "conv2.",
                )
            else:
                path = h
                if key + "shortcut.0.weight" in w:
                    path = norm(conv(h, key + "shortcut.0.", stride), key + "shortcut.1.")
                a = torch.relu(norm(conv(h, key + "conv1.", stride), key + "norm1."))
                h = torch.relu(path + norm(conv(a, key + "conv2."), key + "norm2."))
            j += 1
    last = max(int(k.split(".")[2]) for k in w if k.startswith("stages.3."))
    if pre:
        h = torch.relu(norm(h, f"stages.3.{last - 4}."))
    return h.mean((2, 3)) @ w[f"stages.3.{last}.weight"].T + w[f"stages.3.{last}.bias"]


def vgg_reference(model, x):
    "The logits of VGG in plain functional calls, from the weights in their order."
    w, h = model.state_dict(), (x - 0.5) / 0.25
    convs = [k for k in w if w[k].dim() == 4 and k.endswith("weight")]
    for i, k in enumerate(convs):
        h = F.max_pool2d(h, 2) if i in (2, 4, 7, 10) and h.shape[-1] > 1 else h
        n = k.replace("0.1.weight", "0.2.").replace("conv.weight", "norm.")
        mean, var, scale, shift = (
            w[n + e].view(1, -1, 1, 1) for e in ("running_mean", "running_var", "weight", "bias")
        )
        h = torch.relu((F.conv2d(h, w[k], padding=1) - mean) / (var + 1e-5).sqrt() * scale + shift)
    h = F.max_pool2d(h, 2) if h.shape[-1] > 1 else h
    last = next(k for k in w if w[k].dim() == 2)
    return h.mean((2, 3)) @ w[last].T + w[last.replace("weight", "bias")]


@pytest.mark.parametrize("size", [16, 32])
def test_vgg_against_plain_formulas(size):
    model = randomise(build("vgg16", 7, width=0.05, seed=3)).double().eval()
    x = torch.rand(3, 3, size, size, dtype=torch.float64)
    for net in (model, model.requires_grad_(False)):  # the folded form, too
        expected = vgg_reference(net, x)
        torch.testing.assert_close(net(x), expected, rtol=1e-10, atol=1e-10)
    assert expected.std() > 1e-6


@pytest.mark.parametrize("name", [n for n in NAMES if n != "vgg16"])
def test_logits_against_plain_formulas(name):
    model = randomise(build(name, 7, width=0.05, seed=3)).double().eval()
    x = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        kind = {"pre": name != "resnet18", "wide": name.startswith("wrn")}
        expected = reference(model, x, **kind, first=2 if name.endswith("stride2") else 1)
        assert model(x).dtype == torch.float64
        torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    assert expected.std() > 1e-3


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_stop_and_start_compose_exactly(name, training):
    model = randomise(build(name, 5, width=0.05)).train(training)
    x = torch.rand(4, 3, 16, 16)
    with (
        torch.no_grad(),
        models.batch_statistics(model) if training else models.frozen_statistics(model),
    ):
        whole = model(x)
        assert torch.equal(model(x, stop=0), x) and torch.equal(model(x, stop=4), whole)
        for layer in range(5):
            assert torch.equal(model(model(x, stop=layer), start=layer), whole)
        assert torch.equal(model(model(model(x, stop=1), start=1, stop=3), start=3), whole)
    sides = [model(x, stop=layer).shape[-1] for layer in range(1, 4)]
    assert sides == ([8, 4, 2] if name.endswith("stride2") else [16, 8, 4])


def test_train_mode_composes_exactly_with_recorded_statistics():
    a, b = build("preactresnet18", 5, width=0.125), build("preactresnet18", 5, width=0.125)
    x = torch.rand(4, 3, 16, 16)
    assert torch.equal(a(x), b(b(x, stop=2), start=2))
    assert same(a, snapshot(b)) and a.stages[0][2].norm1.num_batches_tracked == 1


def test_segments_end_where_the_thesis_mixes():
    for name, layer3 in (("preactresnet18", 256), ("resnet18", 256), ("wrn28_10", 640)):
        widths = {"preactresnet18": 0.125, "resnet18": 0.125, "wrn28_10": 0.05}
        model = build(name, 10, width=widths[name])
        assert len(model.stages) == 4
        assert model(torch.rand(2, 3, 32, 32), stop=3).shape == (
            2,
            round(layer3 * widths[name]),
            8,
            8,
        )


def test_the_image_is_normalised_inside():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    plain = build("resnet18", 10, width=0.125, mean=(0.0,), std=(1.0,)).eval()
    model = build("resnet18", 10, width=0.125, mean=mean, std=std).eval()
    x = torch.rand(2, 3, 8, 8)
    normalised = (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(model(x), plain(normalised))


@pytest.mark.parametrize("size", [8, 9, 28, 64])
def test_any_image_size(size):
    assert build("preactresnet18", 3, width=0.05, channels=1)(
        torch.rand(2, 1, size, size)
    ).shape == (2, 3)


def test_gradients_reach_every_parameter():
    for name in NAMES:
        model = build(name, 4, width=0.05)
        model(torch.rand(4, 3, 16, 16)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters()), name


# ---- seeds and initialisation


def test_weights_are_a_function_of_the_seed():
    a, b, c = (build("wrn28_10", 10, width=0.1, seed=s) for s in (4, 4, 5))
    assert same(a, snapshot(b)) and not same(a, snapshot(c))


def test_building_leaves_the_generators_alone():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    with pytest.raises(BadInput):
        build("resnet18", 1)
    build("resnet18", 10, width=0.125, seed=7)
    assert torch.equal(torch.get_rng_state(), before)


def test_initialisation_is_he_by_fan_out():
    model = build("preactresnet18", 10, width=1.0)
    for m in model.modules():
        if isinstance(m, nn.Conv2d) and m.weight.numel() > 30_000:
            expected = math.sqrt(2 / (m.weight.shape[0] * m.kernel_size[0] ** 2))
            assert m.weight.std().item() == pytest.approx(expected, rel=0.02)
        if isinstance(m, nn.BatchNorm2d):
            assert (m.weight == 1).all() and (m.bias == 0).all()
    linear = model.stages[-1][-1]
    assert (linear.bias == 0).all() and linear.weight.abs().max() <= 1 / math.sqrt(512)


# ---- batch statistics and frozen statistics


@pytest.mark.parametrize("training", [False, True])
def test_batch_statistics_leave_no_trace(training):
    model = randomise(build("preactresnet18", 5, width=0.125)).train(training)
    x, before = torch.rand(6, 3, 16, 16), snapshot(model)
    with models.batch_statistics(model) as same_model:
        inside = model(x)
        inside.sum().backward()
    assert same_model is model and same(model, before)
    model.train()
    assert torch.equal(inside, model(x))
    assert not same(model, before)  # the comparison can see running statistics move


@pytest.mark.parametrize("training", [False, True])
def test_frozen_statistics_are_evaluation_mode(training):
    model = randomise(build("preactresnet18", 5, width=0.125)).train(training)
    x, before = torch.rand(6, 3, 16, 16), snapshot(model)
    with models.frozen_statistics(model):
        inside = model(x)
    assert same(model, before)
    assert torch.equal(inside, model.eval()(x))
    with models.batch_statistics(model):
        assert not torch.equal(inside, model(x))


@pytest.mark.parametrize("context", [models.batch_statistics, models.frozen_statistics])
def test_flags_come_back_even_after_an_exception(context):
    model = nn.Sequential(
        nn.BatchNorm2d(2),
        nn.BatchNorm2d(2, track_running_stats=False),
        nn.Dropout(0.5),
        nn.BatchNorm2d(2),
    )
    model[3].eval()
    model[2].eval()

    def flags():
        return [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()]

    before, statistics = flags(), snapshot(model)
    with context(model):
        assert flags() != before
        assert model[2].training is False and model.training is True  # only the batch norms change
        model(torch.rand(4, 2, 3, 3))
    assert flags() == before
    with pytest.raises(RuntimeError, match="stop here"), context(model):
        model(torch.rand(4, 2, 3, 3))
        raise RuntimeError("stop here")
    assert flags() == before and same(model, statistics)


def test_contexts_nest():
    model = randomise(build("resnet18", 3, width=0.125))
    x, before = torch.rand(4, 3, 8, 8), snapshot(model)
    with torch.no_grad(), models.batch_statistics(model):
        a = model(x)
        with models.frozen_statistics(model):
            frozen = model(x)
        b = model(x)
    assert torch.equal(a, b) and same(model, before)
    with torch.no_grad():
        assert torch.equal(frozen, model.eval()(x))


# ---- folded once


class Counted(TorchDispatchMode):
    "In this context it is counted how often each operation runs."

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.seen[operation.overloadpacket.__name__] += 1
        return operation(*args, **(kwargs or {}))


def frozen(name, seed=0):
    "A narrow network that looks trained, in evaluation mode; no parameter needs a gradient."
    return randomise(build(name, 5, width=0.05, seed=seed)).eval().requires_grad_(False)


def passes(model, x, number=3):
    "Logits and gradients of several passes, and how often each operation ran."
    found = []
    with Counted() as counted:
        for i in range(number):
            z = (x * (1 - i / 10)).requires_grad_()
            logits = model(z)
            found += [logits.detach(), torch.autograd.grad(logits.square().sum(), z)[0]]
    return found, counted.seen


def autocast(device, on=True):
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=on)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_folded_once_gives_the_same_bits(name, bf16, device):
    model, x = frozen(name), torch.rand(4, 3, 16, 16)
    for order in (torch.contiguous_format, torch.channels_last):
        model, x = model.to(memory_format=order), x.to(memory_format=order)
        with autocast(device, bf16):
            often, many = passes(model, x)
            with models.folded_once(), models.folded_once():  # one inside shares
                once, few = passes(model, x)
            with models.folded_once(False), models.folded_once():
                assert passes(model, x)[1] == many
        assert all(torch.equal(a, b) for a, b in zip(often, once, strict=True))
        assert many["rsqrt"] == 3 * few["rsqrt"] > 0


@pytest.mark.parametrize("name", ["resnet18", "preactresnet18"])
def test_autocast_rounds_no_weight_in_a_second_pass(name, device):
    "But those of the stem and of the classifier, and the images before the stem."
    model, x, casts = frozen(name), torch.rand(4, 3, 16, 16), []
    with autocast(device), models.folded_once():
        for _ in range(3):
            with Counted() as counted:
                model(x)
            casts.append(counted.seen["_to_copy"])
    folded = sum(isinstance(m, nn.Conv2d) for m in model.modules()) - 1
    assert casts[1] == casts[2] <= casts[0] - folded


def test_what_changes_is_folded_again():
    model, other = frozen("preactresnet18"), frozen("preactresnet18", seed=1)
    x, block = torch.rand(4, 3, 16, 16), model.stages[1][0]
    changes = [
        lambda: block.conv1.weight.mul_(2),
        lambda: block.conv2.weight.neg_(),
        lambda: block.norm2.running_var.add_(1),
        lambda: block.norm2.bias.add_(0.5),
        lambda: model.load_state_dict(other.state_dict()),
        lambda: setattr(block, "norm2", copy.deepcopy(other.stages[1][1].norm2)),
    ]
    with models.folded_once(), torch.no_grad():
        before = model(x)
        for change in changes:
            change()
            now = model(x)
            # a copy consists of other tensors
            assert torch.equal(now, copy.deepcopy(model)(x)) and not torch.equal(now, before)
            before = now


def test_two_precisions_in_one_context(device):
    "As where an attack in bf16 asks float32 for its verdict."
    model, x = frozen("resnet18"), torch.rand(4, 3, 16, 16)
    with autocast(device):
        rounded = model(x)
    exact = model(x)
    with models.folded_once():
        for _ in range(2):
            with autocast(device):
                assert torch.equal(model(x), rounded)
            assert torch.equal(model(x), exact)
    wide = copy.deepcopy(model).double()
    with models.folded_once(), autocast(device):  # which leaves float64 alone
        torch.testing.assert_close(wide(x.double()), wide(x.double()), rtol=0, atol=0)
        assert (wide(x.double()) - exact).abs().max() < 1e-4


def test_what_is_learned_is_never_kept():
    "A bias that needs a gradient gets it in every pass, also where a pass without one was first."
    model, x = frozen("resnet18"), torch.rand(4, 3, 16, 16)
    bias = model.stages[0][-1].norm2.bias.requires_grad_()
    with models.folded_once():
        with torch.no_grad():
            model(x)
        for _ in range(2):
            (slope,) = torch.autograd.grad(model(x).sum(), bias)
            assert slope.abs().max() > 0
    bias.requires_grad_(False)
    with models.folded_once():
        with torch.inference_mode():
            model(x)
        z = x.clone().requires_grad_()
        assert torch.autograd.grad(model(z).sum(), z)[0].abs().max() > 0


def test_nothing_is_kept_afterwards():
    model, x = frozen("resnet18"), torch.rand(4, 3, 16, 16)
    with models.folded_once():
        model(x)
        kept = weakref.ref(next(iter(models._FOLDED.get().values()))[1][0])
        assert kept() is not None
    assert kept() is None
    with pytest.raises(ZeroDivisionError), models.folded_once():
        1 / 0  # noqa: B018
    assert models._FOLDED.get() is None


# ---- cost


def test_flops_by_hand():
    "PreActResNet-18 at 32 × 32: stages of four 3 × 3 convolutions, half the first one saved."
    stage1 = 9 * 3 * 64 * 32**2 + 4 * 9 * 64 * 64 * 32**2
    later = [
        (9 * (c // 2) * c + 3 * 9 * c * c + (c // 2) * c) * side**2
        for c, side in ((128, 16), (256, 8), (512, 4))
    ]
    later[-1] += 512 * 10
    model = build("preactresnet18", 10).train()
    before = snapshot(model)
    assert models.flops(model, 32) == [stage1, *later]
    assert sum([stage1, *later]) == pytest.approx(
        0.556e9, rel=0.01
    )  # as public tables of CIFAR networks have it
    assert model.training and model.stages[1][0].norm1.training and same(model, before)


def test_flops_of_grey_images_and_other_sizes():
    narrow = build("wrn28_10", 10, width=0.05, channels=1)
    small, large = models.flops(narrow, 8), models.flops(narrow, 16)
    assert [b / a for a, b in zip(small[:3], large[:3], strict=True)] == [4, 4, 4]
    assert small[3] == large[3] == 32 * 10


# ---- precision and memory format


def test_channels_last_and_bf16(device):
    model = build("preactresnet18", 10, width=0.125).eval()
    x = torch.rand(4, 3, 32, 32)
    expected = model(x)
    model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    assert model(x, stop=3).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x), expected, rtol=1e-2, atol=1e-3)
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
        features = model(x, stop=2)
        logits = model(features, start=2)
    assert features.dtype == torch.bfloat16 and logits.dtype == torch.float32
    assert (logits - expected).abs().max() < 0.1 * expected.abs().max()


# ---- bad input


@pytest.mark.parametrize(
    "options, says",
    [
        ({"name": "resnet50"}, "preactresnet18"),
        ({"classes": 1}, "classes = 1"),
        ({"width": 0.0}, "width = 0.0"),
        ({"width": 17}, "width = 17"),
        ({"width": float("nan")}, "width = nan"),
        ({"channels": 0}, "0 channels"),
        ({"mean": (0.5, 0.5)}, "2 means"),
        ({"std": (0.5, 0.0, 0.5)}, "above 0"),
    ],
)
def test_bad_input_is_one_line(options, says):
    with pytest.raises(BadInput) as e:
        build(**({"name": "resnet18", "classes": 10} | options))
    assert says in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("start, stop", [(-1, None), (3, 2), (0, 5), (5, None), (0, -1)])
def test_layers_that_do_not_exist(start, stop):
    with pytest.raises(BadInput, match="segments"):
        build("resnet18", 10, width=0.125)(torch.rand(2, 3, 8, 8), start=start, stop=stop)


@pytest.mark.parametrize("name", ["resnet18", "preactresnet18"])
def test_one_tiny_image_alone_is_refused_in_one_line(name):
    net, tiny = build(name, 10, 0.0625), torch.rand(1, 3, 8, 8)
    with pytest.raises(BadInput, match="a batch of one image, .*: choose a batch size") as e:
        net(tiny)
    assert "\n" not in str(e.value)
    with pytest.raises(BadInput, match="choose a batch size"), models.batch_statistics(net.eval()):
        net(tiny)
    net.train()
    for x in (torch.rand(2, 3, 8, 8), torch.rand(1, 3, 32, 32)):
        assert net(x).isfinite().all()
    assert net.eval()(tiny).isfinite().all()


def test_logits_are_at_least_float32():
    for given, expected in (
        ("bfloat16", "float32"),
        ("float32", "float32"),
        ("float64", "float64"),
    ):
        z = torch.rand(2, 3, dtype=getattr(torch, given))
        assert models.full(z).dtype == getattr(torch, expected)


# ---- the tables, and what is taken where nothing else is said


def test_the_tables_as_published():
    "Channels double with every stage; wide ones are 16, 32 and 64 times k of n = (d − 4) / 6."
    for name, a in models.ARCHITECTURES.items():
        if name.startswith("wrn"):
            depth, k = map(int, name.removeprefix("wrn").split("_"))
            own = (16, ((depth - 4) // 6,) * 3, (16 * k, 32 * k, 64 * k))
        elif name == "vgg16":  # the first of 2, 2, 3, 3, 3 is the stem
            own = (64, (1, 2, 3, 3, 3), (64, 128, 256, 512, 512))
        else:
            own = (64, (3, 4, 6, 3) if "34" in name else (2,) * 4, (64, 128, 256, 512))
        assert (a.stem, a.blocks, a.channels) == own, name
        assert a.stride == (2 if name.endswith("stride2") else 1)


def test_all_pools_of_vgg16_halve():
    with torch.device("meta"):
        net = models.blueprint("vgg16", 2, 0.0625)
    pools = [m for m in net.modules() if isinstance(m, nn.MaxPool2d)]
    assert [m.kernel_size for m in pools] == [2] * 5


def test_a_network_where_nothing_else_is_said():
    "Its seed is 0; two classes are enough; a blueprint has full width and three channels."
    assert same(build("resnet18", 2, 0.0625), snapshot(build("resnet18", 2, 0.0625, seed=0)))
    with torch.device("meta"):
        plan = models.blueprint("resnet18", 10)
        assert models.parameter_count(plan) == 11_173_962
    normalise = models.blueprint("resnet18", 2, 0.0625).stages[0][0]
    assert (normalise.mean.item(), normalise.std.item()) == (0.5, 0.25)


def test_counting_flops_prints_nothing(capsys):
    models.flops(build("resnet18", 2, 0.0625), 8)
    assert capsys.readouterr().out == ""
