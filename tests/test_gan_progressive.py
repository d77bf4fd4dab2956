"""Networks that grow, and styles, in float64: the pace at its corners, what is faded in against a
mix of two networks written down, and every layer against the papers' text."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from thesis_repro import games
from thesis_repro.files import BadInput
from thesis_repro.gan_networks import AtInput, ClassHead, EveryLayer, Projection, Unseen
from thesis_repro.gan_progressive import (
    Growth,
    ProgressiveCritic,
    ProgressiveGenerator,
    StyleGenerator,
    at_level,
    doublings,
)
from thesis_repro.recipes import SGD, Phase

TALL = (2, 16, 8)  # channels, height, width: three levels from 4 × 2 on


def drawn(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def built(kind, shape=TALL, labels=3):
    "A network in float64 with biases that are not zero."
    net = kind.build(shape, labels).double()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(drawn(*p.shape, seed=i))
    return net


def conditions(n=4, labels=3):
    return torch.from_numpy(np.random.default_rng(9).integers(0, 2, (n, labels))).double()


def maps(c, h, w):
    return c.view(*c.shape, 1, 1).repeat(1, 1, h, w)


def leaky(x):
    return torch.where(x > 0, x, 0.2 * x)


def pixel_norm(x):
    return x / (x.square().sum(1, keepdim=True) / x.shape[1] + 1e-8).sqrt()


def larger(x):
    "Nearest neighbours: each pixel four times."
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def halved(x):
    "The mean of each two by two pixels."
    n, c, h, w = x.shape
    return x.view(n, c, h // 2, 2, w // 2, 2).mean((3, 5))


def convolution(x, layer, gain=math.sqrt(2)):
    "The weights times He's constant at run time (section 4.1 of Karras et al., 2018)."
    _, inputs, kernel, _ = layer.weight.shape
    he = gain / math.sqrt(inputs * kernel * kernel)
    return F.conv2d(x, layer.weight * he, layer.bias, padding=kernel // 2)


# How far


@pytest.mark.parametrize(
    "progress, grown",
    [
        *((0, 0), (0.1, 0), (0.25 - 1e-9, 0), (0.25, 0), (0.3125, 0.5), (0.375, 1), (0.4, 1)),
        *((0.5 - 1e-9, 1), (0.5, 1), (0.53125, 1.25), (0.625, 2), (0.7, 2)),
        *((0.75, 2), (0.84375, 2.75), (0.875, 3), (0.9, 3), (1, 3)),
    ],
)
def test_growth_at_its_corners(progress, grown):
    "Four levels: a quarter of the run each, half of it to fade in."
    assert math.isclose(Growth()(progress, 4), grown, abs_tol=1e-12)


@pytest.mark.parametrize("fade", [0.0, 0.25, 8 / 15, 1.0])
@pytest.mark.parametrize("levels", [1, 2, 3, 7])
def test_growth_ends_whole_and_never_goes_back(fade, levels):
    growth = Growth(fade)
    found = [growth(p, levels) for p in np.linspace(0, 1, 400).tolist()]
    assert found[0] == 0 and found[-1] == levels - 1
    assert all(a <= b for a, b in itertools.pairwise(found))
    begins = growth.begins(levels)
    assert len(begins) == levels - 1
    for level, begin in enumerate(begins, 1):
        assert math.isclose(begin, level / levels)
        whole = begin + fade / levels
        assert math.isclose(growth(min(whole + 1e-9, 1), levels), level, abs_tol=1e-6)
        if fade:
            assert math.isclose(growth(begin + 1e-12, levels), level - 1, abs_tol=1e-6)
            half = growth(begin + 0.5 * fade / levels, levels)
            assert math.isclose(half, level - 0.5, abs_tol=1e-6)
        else:
            assert growth(begin - 1e-6, levels) == level - 1
    with pytest.raises(BadInput, match="fade"):
        Growth(1.1)


@pytest.mark.parametrize(
    "shape, count",
    [
        *(((3, 128, 128), 5), ((3, 192, 256), 6), ((1, 28, 28), 2), ((3, 1024, 1024), 8)),
        *(((1, 8, 8), 1), ((1, 7, 7), 0), ((1, 4, 4), 0), ((1, 16, 12), 2), ((1, 6, 8), 1)),
        *(((2, 16, 8), 2), ((1, 14, 20), 1)),
    ],
)
def test_doublings_begin_at_four_to_seven_pixels(shape, count):
    "Of the longer side, or where a side is odd."
    assert doublings(shape) == count
    generator = ProgressiveGenerator(4, (4,)).build(shape, 0)
    assert generator.levels == count + 1
    assert generator.start == (shape[1] // 2**count, shape[2] // 2**count)


def test_real_images_fade_like_generated_ones():
    x = drawn(2, *TALL)
    assert at_level(x, 2, 3) is x and at_level(x, 0, 1) is x
    torch.testing.assert_close(at_level(x, 1, 3), halved(x))
    torch.testing.assert_close(at_level(x, 0, 3), halved(halved(x)))
    mixed = 0.75 * larger(halved(x)) + 0.25 * x
    torch.testing.assert_close(at_level(x, 1.25, 3), mixed)
    small = 0.1 * larger(halved(halved(x))) + 0.9 * halved(x)
    torch.testing.assert_close(at_level(x, 0.9, 3), small)


# The generator

WAYS = {"AtInput": (3, 0, 0), "EveryLayer": (3, 3, 3), "Unseen": (0, 0, 0)}


def painted(net, z, c, level, told):
    "The features of a level of a generator, from z on."
    z = torch.cat([z, c], 1) if told[0] else z
    z = pixel_norm(z)  # the latent vector is normalised too
    inputs = z.shape[1]
    h = z @ (net.first.weight * (math.sqrt(2) / 4 / math.sqrt(inputs))).T  # NVIDIA's gain, √2 / 4
    h = pixel_norm(leaky(h.view(len(z), -1, 4, 2) + net.bias))
    h = pixel_norm(leaky(convolution(h, net.small[0])))
    for i in range(level):
        h = larger(h)
        h = torch.cat([h, maps(c, *h.shape[2:])], 1) if told[i + 1] else h
        for layer in (net.blocks[i][0], net.blocks[i][3]):
            h = pixel_norm(leaky(convolution(h, layer)))
    return h


@pytest.mark.parametrize("condition", [AtInput(), EveryLayer(), Unseen()])
def test_the_generator_and_its_fading(condition):
    "Between two levels the image is a mix of those of two networks."
    net = built(ProgressiveGenerator(5, (6, 4, 3), condition))
    z, c, told = drawn(4, 5), conditions(), WAYS[type(condition).__name__]

    def image(level):
        h = painted(net, z, c, level, told)
        return convolution(h, net.colours[level], gain=1)  # linear, so no gain; no tanh

    for level in range(3):
        assert image(level).shape == (4, 2, 4 * 2**level, 2 * 2**level)
        torch.testing.assert_close(net(z, c, float(level)), image(level))
    for level, share in ((0, 0.25), (1, 0.9)):
        mixed = (1 - share) * larger(image(level)) + share * image(level + 1)
        torch.testing.assert_close(net(z, c, level + share), mixed)


# The critic


def judged(net, x, c, level, told, share=0.0):
    "Features of 4 × 2 pixels, from an image at that level; `share` of a new one is faded in."

    def seen(x, i):
        return leaky(convolution(x, net.colours[i]))

    def down(h, i):
        for layer in (net.blocks[i - 1][0], net.blocks[i - 1][2]):
            h = leaky(convolution(h, layer))
        return halved(h)

    if share:
        older, newer = seen(halved(x), level), down(seen(x, level + 1), level + 1)
        h = (1 - share) * older + share * newer
    else:
        h = seen(x, level)
    for i in range(level, 0, -1):
        h = down(h, i)
    return torch.cat([h, maps(c, 4, 2)], 1) if told else h


def scored(net, h):
    "From the smallest maps to features and a score; images i, i + n/4 … are a group."
    n, std = len(h), torch.zeros(len(h), 1, 4, 2, dtype=h.dtype)
    for i in range(n // 4):
        group = h[i :: n // 4]
        of_group = ((group - group.mean(0)).square().mean(0) + 1e-8).sqrt().mean()
        std[i :: n // 4] = of_group
    h = leaky(convolution(torch.cat([h, std], 1), net.small)).flatten(1)
    narrow = net.narrow.weight * math.sqrt(2 / h.shape[1])
    h = leaky(h @ narrow.T + net.narrow.bias)
    last = net.heads.score
    return h, (h @ (last.weight / math.sqrt(h.shape[1])).T + last.bias)[:, 0]


@pytest.mark.parametrize("grown", [0.0, 0.25, 1.0, 1.9, 2.0])
@pytest.mark.parametrize("condition", [Unseen(), EveryLayer()])
def test_the_critic_and_its_fading(condition, grown):
    "The progressive critic is told before its last convolution, whichever the way."
    net = built(ProgressiveCritic((6, 4, 3), condition, ClassHead()))
    level, share = int(grown), grown % 1
    side = 2 ** math.ceil(grown)
    x, c = drawn(8, 2, 4 * side, 2 * side), conditions(8)
    h = judged(net, x, c, level, condition == EveryLayer(), share)
    features, score = scored(net, h)
    said = net(x, c, grown)
    torch.testing.assert_close(said.score, score)
    classes = net.heads.classes[1]
    torch.testing.assert_close(said.logits, features @ classes.weight.T + classes.bias)


def test_a_projection_looks_at_the_last_features():
    net = built(ProgressiveCritic((6, 4), Projection()), (2, 8, 4))
    x, c = drawn(4, 2, 8, 4), conditions()
    features, score = scored(net, judged(net, x, c, 1, False))
    direction = (c @ net.heads.direction.weight.T * features).sum(1)
    torch.testing.assert_close(net(x, c).score, score + direction)


@pytest.mark.parametrize("grown", [0.5, 1.0])
def test_the_critics_slopes_have_derivatives(grown):
    "WGAN-GP differentiates twice: by finite differences of the penalty, also while fading."
    net = built(ProgressiveCritic((3, 2)), (1, 8, 4), 0)
    x, c = drawn(4, 1, 8, 4), torch.zeros(4, 0)
    weights = [net.colours[1].weight, net.blocks[0][0].weight, net.small.weight, net.narrow.bias]

    def penalty(*_):
        return (games.slopes(lambda x: net(x, c, grown).score, x) - 1).square().mean()

    assert gradcheck(penalty, weights, atol=1e-4, rtol=1e-3)


# What both keep


def test_how_far_is_kept_with_the_weights():
    for kind, first in (
        (ProgressiveGenerator(5, (4, 4, 4)), drawn(4, 5)),
        (ProgressiveCritic((4, 4, 4)), drawn(4, 2, 8, 4)),
    ):
        net, other, c = built(kind), built(kind), conditions()
        assert net.grown.item() == 2 and net.grown.dtype == torch.float64
        net.grown.fill_(0.75)
        other.load_state_dict(net.state_dict())
        for a, b in ((net, 0.75), (other, None)):
            said, expected = a(first, c), net(first, c, b)
            if isinstance(kind, ProgressiveCritic):
                said, expected = said.score, expected.score
            assert torch.equal(said, expected)


@pytest.mark.parametrize("kind", [ProgressiveGenerator, ProgressiveCritic])
def test_the_last_width_is_that_of_all_further_levels(kind):
    net = kind(channels=(6, 5)).build((1, 32, 32), 0)
    assert net.channels == (6, 5, 5, 5)
    assert kind(channels=(6, 5, 4)).build((1, 8, 8), 0).channels == (6, 5)


def test_weights_begin_at_n_0_1():
    torch.manual_seed(0)
    for kind in (ProgressiveGenerator(64, (64, 32)), ProgressiveCritic((64, 32))):
        net = kind.build((3, 8, 8), 10)
        for name, p in net.named_parameters():
            if p.dim() > 1 and p.numel() > 1000:
                assert abs(p.std().item() - 1) < 5 / p.numel() ** 0.5, name
            elif name.endswith("bias"):
                assert not p.any(), name


# Styles


def normalised(h, style, layer):
    "AdaIN: each map of each image to mean zero and variance one, then what the style says."
    y = style @ layer.affine.weight.T + layer.affine.bias
    scale, shift = y[:, : h.shape[1], None, None], y[:, h.shape[1] :, None, None]
    mean, var = h.mean((2, 3), keepdim=True), h.var((2, 3), keepdim=True, unbiased=False)
    return (1 + scale) * (h - mean) / (var + 1e-5).sqrt() + shift


def test_the_style_generator():
    "A mapping network of layers that learn a hundredth as fast, a constant, AdaIN at every level."
    net = built(StyleGenerator(5, (6, 4, 3), depth=3))
    z, c = drawn(4, 5), conditions()
    w = pixel_norm(torch.cat([z, c], 1))
    layers = [m for m in net.mapping if hasattr(m, "weight")]
    assert len(layers) == 3
    for layer in layers:
        he = 0.01 * math.sqrt(2 / layer.in_features)
        w = leaky(w @ (he * layer.weight).T + 0.01 * layer.bias)
    torch.testing.assert_close(net.style(z, c), w)
    h = net.constant.repeat(4, 1, 1, 1)
    assert h.shape == (4, 6, 4, 2)
    for i, (layer, norm) in enumerate(zip(net.convs, net.norms, strict=True)):
        h = larger(h) if i else h
        h = normalised(leaky(convolution(h, layer)), w, norm)
    expected = convolution(h, net.colours, gain=1)
    assert expected.shape == (4, *TALL)
    torch.testing.assert_close(net(z, c), expected)
    torch.testing.assert_close(net.image(w), expected)


def test_the_style_generator_begins():
    torch.manual_seed(0)
    net = StyleGenerator(64, (32, 16), 2).build((3, 32, 32), 0)
    assert (net.constant == 1).all() and net.constant.shape == (32, 4, 4)
    assert [n.norm.num_features for n in net.norms] == [32, 16, 16, 16]
    assert abs(net.mapping[1].weight.std().item() - 100) < 5  # divided by its rate
    image = net(torch.randn(3, 64), torch.zeros(3, 0))
    assert image.shape == (3, 3, 32, 32) and image.isfinite().all()


def test_published_sizes():
    "Table 2 of Karras et al. (2018): NVIDIA's counts; the style generator has the same widths."
    with torch.device("meta"):
        nets = [k().build((3, 1024, 1024), 0) for k in (ProgressiveGenerator, ProgressiveCritic)]
    counts = [sum(p.numel() for p in net.parameters()) for net in nets]
    assert counts == [23_079_115, 23_087_249]
    assert all(net.per_row for net in nets)
    styled, widths = StyleGenerator(), ProgressiveGenerator().channels
    assert (styled.latent, styled.depth, styled.channels) == (512, 8, widths)


@pytest.mark.parametrize("epochs, steps, levels", [(3, 40, 3), (5, 7, 5), (30, 13, 6), (7, 11, 7)])
def test_a_level_begins_where_the_optimisers_begin_anew(epochs, steps, levels):
    "However a share of the run is rounded."
    phase = Phase("critic", ("critic",), SGD(), None, fresh=Growth().begins(levels))
    total = epochs * steps
    reached = [Growth(0.5)((i // steps + i % steps / steps) / epochs, levels) for i in range(total)]
    assert reached == sorted(reached) and reached[0] == 0
    for level in range(1, levels):
        (first,) = (i for i in range(total) if math.ceil(level * total / levels - 1e-9) == i)
        assert phase.forgets(first, total)
        assert level - 1 <= reached[first] < level - 1 + 2 * levels / total + 1e-6
        assert reached[first - 1] == level - 1
