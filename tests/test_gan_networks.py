"""Generators and critics against the same networks written down with torch's functions, in float64:
where a condition enters, what each layer is made of, and what is refused."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from thesis_repro import gan_networks
from thesis_repro.files import BadInput
from thesis_repro.gan_blocks import SelfAttention
from thesis_repro.gan_networks import (
    AtInput,
    ClassHead,
    Condition,
    DcganCritic,
    DcganGenerator,
    EveryLayer,
    Middle,
    MlpCritic,
    MlpGenerator,
    Projection,
    SplitGenerator,
    Unseen,
    narrower,
    start_of,
)
from thesis_repro.gan_progressive import ProgressiveCritic, ProgressiveGenerator, StyleGenerator
from thesis_repro.pieces import piece
from thesis_repro.weighted import Weighted

TALL = (2, 8, 4)  # channels, height, width


def drawn(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def built(kind, shape=TALL, labels=3, seed=0):
    "A network in float64 with weights that are larger than those it begins with."
    net = kind.build(shape, labels).double()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(drawn(*p.shape, seed=seed + i) * 0.4)
    return net


def conditions(n=4, labels=3):
    return torch.from_numpy(np.random.default_rng(9).integers(0, 2, (n, labels))).double()


def maps(c, h, w):
    "Conditions (n, k) as maps of one value."
    return c.view(*c.shape, 1, 1).repeat(1, 1, h, w)


def leaky(x, slope=0.2):
    return torch.where(x > 0, x, slope * x)


def normed(x, norm):
    "Batch norm by the statistics of the batch, with the layer's own scale and shift."
    return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True)


# The multilayer perceptron


def linear(x, layer):
    return x @ layer.weight.T + layer.bias


@pytest.mark.parametrize("condition", [AtInput(), Unseen()])
def test_the_perceptrons(condition):
    generator = built(MlpGenerator(5, (6, 7), condition))
    critic = built(MlpCritic((7, 6), condition))
    z, c = drawn(4, 5), conditions()
    told = c if condition == AtInput() else c[:, :0]
    one, _, two, _, three, _ = generator.body
    h = leaky(linear(torch.cat([z, told], 1), one))
    expected = linear(leaky(linear(h, two)), three).tanh().view(4, *TALL)
    torch.testing.assert_close(generator(z, c), expected)
    one, _, two, _, three = critic.body
    h = leaky(linear(torch.cat([expected.flatten(1), told], 1), one))
    said = critic(expected, c)
    torch.testing.assert_close(said.score, linear(leaky(linear(h, two)), three)[:, 0])
    assert said.logits is None and said.score.shape == (4,)


# DCGAN's generator

TOLD = {"AtInput": [3, 0, 0], "EveryLayer": [3, 3, 3], "Unseen": [0, 0, 0]}


@pytest.mark.parametrize("norm", ["batch", "pixel", "none"])
@pytest.mark.parametrize("condition", [AtInput(), EveryLayer(), Unseen()])
def test_the_deconvolutions(condition, norm):
    "Each layer but the first doubles the map; the condition comes before those that hear it."
    net = built(DcganGenerator(5, (6, 4), condition, norm))
    z, c = drawn(4, 5), conditions()
    h = z.view(4, 5, 1, 1)
    told = TOLD[type(condition).__name__]
    for i, (layer, after) in enumerate(zip(net.layers, net.after, strict=True)):
        if told[i]:
            h = torch.cat([h, maps(c, *h.shape[2:])], 1)
        stride, padding = (2, 1) if i else (1, 0)
        assert layer.bias is None
        assert layer.weight.shape[2:] == ((4, 4) if i else (2, 1))
        h = F.conv_transpose2d(h, layer.weight, None, stride, padding)
        if i == 2:
            h = h.tanh()
            continue
        if norm == "batch":
            h = normed(h, after[0])
        elif norm == "pixel":
            h = h / (h.square().mean(1, keepdim=True) + 1e-8).sqrt()
        h = h.clamp(min=0)
    assert h.shape == (4, *TALL)
    torch.testing.assert_close(net(z, c), h)


def test_attention_is_at_the_map_of_its_side():
    "Its side is the map's height; γ, which begins at zero, turns it on."
    for side, at in ((2, 0), (4, 1)):
        net = DcganGenerator(5, (6, 4), attention=side).build(TALL, 3)
        found = [i for i, part in enumerate(net.after) if isinstance(part[-1], SelfAttention)]
        assert found == [at] and net.after[at][-1].value.in_channels == (6, 4)[at]
        critic = DcganCritic((4, 6), attention=side).build(TALL, 3)
        found = [i for i, part in enumerate(critic.layers) if isinstance(part[-1], SelfAttention)]
        assert found == [1 - at]


# DCGAN's critic


def trunk(critic, x, c, told, slope, compare=False, norm="batch"):
    "The last maps of a critic of two layers."
    for i, layer in enumerate(critic.layers):
        convolution = next(m for m in layer if isinstance(m, torch.nn.Conv2d))
        x = torch.cat([x, told[i](c, *x.shape[2:])], 1) if told[i] else x
        if compare and i == 1:
            std = (x.var(0, unbiased=False) + 1e-8).sqrt().mean()
            x = torch.cat([x, std.expand(len(x), 1, *x.shape[2:])], 1)
        x = F.conv2d(x, convolution.weight, None, 2, 1)
        if i and norm == "batch":
            x = normed(x, next(m for m in layer if isinstance(m, torch.nn.BatchNorm2d)))
        x = leaky(x, slope)
    return x


@pytest.mark.parametrize("compare", [False, True])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_the_convolutions(norm, compare):
    "No norm in the first layer; the score is one filter over the last maps, without a bias."
    net = built(DcganCritic((4, 6), norm=norm, compare=compare, slope=0.1))
    x, c = drawn(4, *TALL), conditions()
    h = trunk(net, x, c, [None, None], 0.1, compare, norm)
    weight = net.heads.score.weight.view(1, 6, 2, 1)
    assert net.heads.score.bias is None
    said = net(x, c)
    torch.testing.assert_close(said.score, F.conv2d(h, weight).flatten())
    assert said.logits is None and said.attention is None


def middle(net):
    "Reed et al.: a linear image of the condition, and a leaky ReLU."
    return lambda c, *sides: maps(leaky(linear(c, net.given[1].linear)), *sides)


@pytest.mark.parametrize(
    "condition, told",
    [
        (Unseen(), lambda net: [None, None]),
        (AtInput(), lambda net: [maps, None]),
        (EveryLayer(), lambda net: [maps, maps]),
        (Middle(5), lambda net: [None, middle(net)]),
    ],
    ids=lambda p: type(p).__name__,
)
def test_where_a_critic_is_told(condition, told):
    net = built(DcganCritic((4, 6), condition))
    x, c = drawn(4, *TALL), conditions()
    h = trunk(net, x, c, told(net), 0.2)
    expected = h.flatten(1) @ net.heads.score.weight[0]
    torch.testing.assert_close(net(x, c).score, expected)
    other = net(x, 1 - c).score
    assert torch.equal(other, net(x, c).score) == (condition == Unseen())


def test_the_projection_is_a_product_of_features_and_condition():
    "Miyato and Koyama (2018), eq. 3: yᵀ V φ(x) beside ψ(φ(x)); φ are the means of the last maps."
    net = built(DcganCritic((4, 6), Projection()))
    x, c = drawn(4, *TALL), conditions()
    h = trunk(net, x, c, [None, None], 0.2)
    v, score = net.heads.direction.weight, net.heads.score.weight[0]
    assert net.heads.direction.bias is None and v.shape == (6, 3)
    features = h.mean((2, 3))
    expected = [c[i] @ v.T @ features[i] + score @ h[i].flatten() for i in range(4)]
    torch.testing.assert_close(net(x, c).score, torch.stack(expected))


@pytest.mark.parametrize("hidden", [(), (5,)])
def test_the_class_head(hidden):
    net = built(DcganCritic((4, 6), classes=ClassHead(hidden)))
    x, c = drawn(4, *TALL), conditions()
    h = trunk(net, x, c, [None, None], 0.2).flatten(1)
    layers = [m for m in net.heads.classes if isinstance(m, torch.nn.Linear)]
    assert len(layers) == len(hidden) + 1
    for layer in layers[:-1]:
        h = leaky(linear(h, layer))
    torch.testing.assert_close(net(x, c).logits, linear(h, layers[-1]))


def test_a_critic_with_spectral_norm_has_it_everywhere_and_no_other():
    torch.manual_seed(0)
    net = DcganCritic((4, 6), Projection(), ClassHead((5,)), "spectral").build(TALL, 3).double()
    x, c = drawn(4, *TALL), conditions()
    for _ in range(300):
        net(x, c)
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    layers = [m for m in net.eval().modules() if isinstance(m, kinds)]
    assert len(layers) == 6
    for layer in layers:
        largest = np.linalg.norm(layer.weight.detach().flatten(1).numpy(), 2)
        assert math.isclose(largest, 1, rel_tol=1e-4)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules())


def test_critics_can_be_differentiated_twice_by_the_image():
    "What a gradient penalty needs of every way of telling."
    x, c = drawn(2, 1, 4, 4), conditions(2, 2)
    for condition in (AtInput(), Middle(2), Projection()):
        net = built(DcganCritic((3, 3), condition, norm="none", compare=True), (1, 4, 4), 2)

        def slope(x, net=net):
            (found,) = torch.autograd.grad(net(x, c).score.sum(), x, create_graph=True)
            return found.square().sum((1, 2, 3))

        assert gradcheck(slope, x.clone().requires_grad_())


# BigGAN's split latent vector


def conditional(x, norm, vector):
    "Batch norm with the scale 1 + … and the shift that a vector says."
    scale, shift = linear(vector, norm.affine).view(len(x), 2, -1, 1, 1).unbind(1)
    return F.batch_norm(x, None, None, training=True) * (1 + scale) + shift


def test_each_block_gets_its_part_of_z_and_the_condition():
    "Residual blocks as in figure 15 of Brock et al. (2019), without the bottleneck."
    net = built(SplitGenerator(6, (4, 3)))
    z, c = drawn(4, 6), conditions()
    h = linear(z[:, :2], net.first).view(4, 4, 2, 1)
    for i, block in enumerate(net.blocks):
        told = torch.cat([z[:, 2 * i + 2 : 2 * i + 4], c], 1)
        g = conditional(h, block.norms[0], told).clamp(min=0)
        g = g.repeat_interleave(2, 2).repeat_interleave(2, 3)
        g = F.conv2d(g, block.convs[0].weight, block.convs[0].bias, padding=1)
        g = conditional(g, block.norms[1], told).clamp(min=0)
        g = F.conv2d(g, block.convs[1].weight, block.convs[1].bias, padding=1)
        skip = F.conv2d(h, block.skip.weight, block.skip.bias)
        h = g + skip.repeat_interleave(2, 2).repeat_interleave(2, 3)
    h = normed(h, net.last[0]).clamp(min=0)
    h = F.conv2d(h, net.last[2].weight, net.last[2].bias, padding=1).tanh()
    assert h.shape == (4, *TALL)
    torch.testing.assert_close(net(z, c), h)


@pytest.mark.parametrize("latent", [2, 3])
def test_a_latent_vector_has_a_number_for_each_part(latent):
    "The first map and each block get a part: one of no numbers would make the same image for all."
    with pytest.raises(BadInput, match=f"latent = {latent}: 4 parts"):
        SplitGenerator(latent, (4, 4, 4))
    net = SplitGenerator(4, (4, 4, 4)).build((1, 16, 16), 0)
    assert net(torch.zeros(2, 4), torch.zeros(2, 0)).isfinite().all()


# What is refused

KINDS = {
    "MlpGenerator": (MlpGenerator(5, (6,)), False),
    "MlpCritic": (MlpCritic((6,)), True),
    "DcganGenerator": (DcganGenerator(5, (6, 4)), False),
    "DcganCritic": (DcganCritic((4, 6)), True),
    "SplitGenerator": (SplitGenerator(5, (4, 4)), False),
    "ProgressiveGenerator": (ProgressiveGenerator(5, (4, 4)), False),
    "ProgressiveCritic": (ProgressiveCritic((4, 4)), True),
    "StyleGenerator": (StyleGenerator(5, (4, 4), 2), False),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("shape, labels", [((2, 4), 3), ((2, 2), 3), ((2,), 3), ((2, 1), 0)])
def test_a_condition_of_the_wrong_length_is_refused(name, shape, labels):
    kind, critic = KINDS[name]
    net = kind.build((1, 8, 8), labels)
    got = " × ".join(map(str, shape))
    wanted = f"condition of {got}: must have {labels} numbers for each image"
    first = torch.zeros(2, 1, 8, 8) if critic else torch.zeros(2, net.latent)
    with pytest.raises(BadInput, match=wanted):
        net(first, torch.zeros(shape))
    right = net.eval()(first, torch.zeros(2, labels))
    assert (right.score if critic else right).isfinite().all()


@piece
class Whispered(Condition):
    "A condition of the tests' own that enters nowhere."


@pytest.mark.parametrize(
    "kind",
    [
        DcganGenerator(5, (6, 4), Projection()),
        DcganGenerator(5, (6, 4), Whispered()),
        DcganCritic((4, 6), Whispered()),
        ProgressiveGenerator(5, (4, 4), Projection()),
        ProgressiveCritic((4, 4), AtInput()),
    ],
    ids=lambda k: f"{type(k).__name__} {type(k.condition).__name__}",
)
def test_a_condition_that_reaches_no_layer_is_refused(kind):
    "Or else a network would be trained without what it was given, and nobody would know."
    name, said = type(kind).__name__, type(kind.condition).__name__
    with pytest.raises(BadInput, match=rf"{name}: condition = {said}: reaches none of its layers"):
        kind.build((1, 8, 8), 3)
    kind.build((1, 8, 8), 0)  # where there is nothing to tell, nothing is lost


@pytest.mark.parametrize("condition", [AtInput(), EveryLayer(), Middle(), Projection(), Weighted()])
def test_conditions_that_enter_change_what_is_said(condition):
    "A critic's score in every way that a kind takes; the progressive one has a single late place."
    c, x = torch.eye(3).double(), drawn(3, 1, 8, 8)
    kinds = [DcganCritic((4, 6), condition)]
    kinds += [] if condition == AtInput() else [ProgressiveCritic((4, 4), condition)]
    for kind in kinds:
        net = built(kind, (1, 8, 8))
        assert not torch.allclose(net(x, c).score, net(x, c.roll(1, 0)).score)


# Sizes and beginnings


def test_where_a_map_begins():
    assert start_of((3, 64, 48), 4) == (4, 3) and start_of((1, 7, 9), 0) == (7, 9)
    assert start_of((1, 2, 4), 1) == (1, 2)
    for shape, doublings in (((1, 6, 8), 2), ((1, 8, 6), 2), ((1, 2, 2), 2)):
        said = f"images of {shape[1]} × {shape[2]}: {doublings} layers"
        with pytest.raises(BadInput, match=said):
            start_of(shape, doublings)
    with pytest.raises(BadInput, match="do not fit"):
        DcganCritic((4, 4, 4)).build((1, 12, 12), 0)


def test_weights_begin_as_dcgans():
    "N(0, 0.02); the scales of batch norm N(1, 0.02), its shifts at zero."
    torch.manual_seed(0)
    for kind in (DcganGenerator(60, (80, 60)), DcganCritic((60, 80)), SplitGenerator(60, (60, 60))):
        net = kind.build((3, 32, 32), 10)
        for name, m in net.named_modules():
            if isinstance(m, (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Linear)):
                mean, std = m.weight.mean().item(), m.weight.std().item()
                n = m.weight.numel()
                assert abs(mean) < 5 * 0.02 / n**0.5, name
                assert abs(std - 0.02) < 5 * 0.02 / (2 * n) ** 0.5, name
            elif isinstance(m, torch.nn.BatchNorm2d) and m.affine:
                assert abs(m.weight.mean() - 1) < 0.02 and 0.01 < m.weight.std() < 0.03
                assert not m.bias.any()


def test_narrower_networks_have_at_least_four_channels():
    kind = DcganGenerator(channels=(100, 50, 9))
    assert narrower(kind, "channels", 0.25).channels == (25, 12, 4)
    for kind, field in (
        (MlpGenerator(), "hidden"),
        (MlpCritic(), "hidden"),
        (DcganGenerator(), "channels"),
        (DcganCritic(), "channels"),
        (SplitGenerator(), "channels"),
        (ProgressiveGenerator(), "channels"),
        (ProgressiveCritic(), "channels"),
        (StyleGenerator(), "channels"),
    ):
        scaled = kind.scaled(0.5)
        assert scaled == narrower(kind, field, 0.5)
        assert [2 * n for n in getattr(scaled, field)] == list(getattr(kind, field))
    assert gan_networks.narrower(MlpCritic((10,)), "hidden", 0.1).hidden == (4,)


def test_every_number_of_a_split_z_has_a_part():
    "Also where there are more numbers than the parts share evenly."
    net = SplitGenerator(latent=10, channels=(8, 6, 4)).build((3, 16, 16), 2)
    assert net.latent == 8
    z = torch.zeros(1, net.latent, requires_grad=True)
    torch.manual_seed(0)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.5)
    net.eval()(z, torch.ones(1, 2)).square().sum().backward()
    assert (z.grad != 0).all()
