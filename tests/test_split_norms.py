"""Split batch norms against two networks that share nothing but a copy of the weights."""

import copy

import pytest
import torch
import torch.nn as nn
import torchvision

from thesis_repro import models
from thesis_repro.attacks import PGD
from thesis_repro.draws import Draws
from thesis_repro.files import BadInput
from thesis_repro.models import batch_statistics, frozen_statistics
from thesis_repro.robustness import evaluate, robust_accuracy
from thesis_repro.split_norms import AuxiliaryNorms, Branch, norm_places, through

HOUSE = ("resnet18", "preactresnet18")
NAMES = (*HOUSE, "tv resnet18", "tv efficientnet_b0")


def network(name, seed=0):
    "A small network in float64, without anything random in its passes."
    if name in HOUSE:
        return models.build(name, 7, width=0.0625, seed=seed).double()
    torch.manual_seed(seed)
    net = torchvision.models.get_model(name[3:], num_classes=7)
    for m in net.modules():
        if hasattr(m, "p"):
            m.p = 0.0
    return net.double()


def batches(seed=1, n=6):
    draw = torch.Generator().manual_seed(seed)
    clean = torch.rand(n, 3, 32, 32, generator=draw, dtype=torch.float64)
    other = (0.3 * clean + 0.7 * torch.rand(clean.shape, generator=draw).double()).clamp(0, 1)
    return clean, other, torch.arange(n) % 7


def states(*modules):
    return [{k: v.clone() for k, v in m.state_dict().items()} for m in modules]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_two_networks_with_the_same_weights(name):
    "Logits, gradients and running statistics of two separate passes, in training mode."
    net, (x, z, y) = network(name).train(), batches()
    norms, one, two = AuxiliaryNorms(net), copy.deepcopy(net), copy.deepcopy(net)
    loss = nn.CrossEntropyLoss()
    a, b = net(x), Branch(net, norms)(z)
    expected = one(x), two(z)
    torch.testing.assert_close((a, b), expected)
    (loss(a, y) + loss(b, y)).backward()
    loss(expected[0], y).backward()
    loss(expected[1], y).backward()
    norm_names = {n for names in norm_places(net) for n in names}
    seconds = {names[0]: s for names, s in zip(norms.places, norms.norms(1), strict=True)}
    others = dict(two.named_parameters())
    for (k, own), (_, first) in zip(net.named_parameters(), one.named_parameters(), strict=True):
        place, _, kind = k.rpartition(".")
        if place in norm_names:
            torch.testing.assert_close(own.grad, first.grad)
            torch.testing.assert_close(getattr(seconds[place], kind).grad, others[k].grad)
        else:
            torch.testing.assert_close(own.grad, first.grad + others[k].grad)
    assert same(net.state_dict(), one.state_dict())
    assert same(Branch(net, norms).alone().state_dict(), two.state_dict())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [1, 3])
def test_no_branch_touches_the_statistics_of_another(name, number):
    net, (x, z, _) = network(name).train(), batches()
    norms = AuxiliaryNorms(net, 3)
    before = states(net, *norms.sets)
    with torch.no_grad(), through(net, norms, number):
        net(z)
    after = states(net, *norms.sets)
    changed = [not same(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [i == number for i in range(4)]
    with torch.no_grad(), through(net, norms, 0):
        net(x)
    assert not same(net.state_dict(), before[0]) and same(
        norms.norms(number).state_dict(), after[number]
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_network_keeps_the_state_dict_of_the_plain_one(name):
    net, (x, z, _) = network(name).train(), batches()
    norms = AuxiliaryNorms(net, 2)
    with torch.no_grad():
        net(x)
        Branch(net, norms, 2)(z)
    for source in (net, Branch(net, norms, 2).alone()):
        plain = network(name, seed=1)
        plain.load_state_dict(source.state_dict())
    plain.eval()
    net.eval()
    torch.testing.assert_close(plain(z), Branch(net, norms, 2)(z))
    assert not torch.allclose(plain(z), net(z))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bn", ["eval", "train"])
def test_a_branch_is_attacked_as_the_plain_network_that_computes_the_same(name, bn):
    "With folded norms where the network folds them, and without a trace in any statistics."
    net, (x, z, y) = network(name).train(), batches()
    norms = AuxiliaryNorms(net)
    with torch.no_grad():
        Branch(net, norms)(z)
        for p in norms.parameters():
            p.mul_(0.7).add_(0.1)
    branch, before = Branch(net, norms), states(net, norms)
    attack = PGD(0.05, 0.02, 3, targeted=True, bn=bn)
    found = attack(branch, x, y, Draws(3))
    torch.testing.assert_close(found, attack(branch.alone(), x, y, Draws(3)))
    assert not torch.equal(found, attack(net, x, y, Draws(3)))
    assert all(same(a, b) for a, b in zip(before, states(net, norms), strict=True))
    assert all(p.requires_grad for p in branch.parameters()) and net.training


def test_a_branch_is_evaluated_and_its_robustness_measured():
    net, (_, z, y) = network("resnet18").float().train(), batches(n=20)
    norms = AuxiliaryNorms(net)
    with torch.no_grad():
        Branch(net, norms)(z.float())
    images = (255 * z).to(torch.uint8)
    branch, alone = Branch(net, norms), Branch(net, norms).alone()
    assert evaluate(branch, images, y) == evaluate(alone, images, y)
    how = {"attack": PGD(step=0.02, steps=2), "progress": False}
    assert robust_accuracy(branch, images, y, **how) == robust_accuracy(alone, images, y, **how)
    assert net.training and branch.training


@pytest.mark.parametrize("mode", [frozen_statistics, batch_statistics])
def test_norms_in_place_follow_the_mode_of_the_network(mode):
    "Also where only the network is told, and not its branch."
    net, (_, z, _) = network("resnet18").train(), batches()
    norms = AuxiliaryNorms(net)
    before = states(net, norms)
    with mode(net), torch.no_grad():
        seen = Branch(net, norms)(z)
        with mode(alone := Branch(net, norms).alone()):
            torch.testing.assert_close(seen, alone(z))
    assert all(same(a, b) for a, b in zip(before, states(net, norms), strict=True))
    with torch.no_grad():
        Branch(net, norms)(z)
    assert not same(before[1], norms.state_dict()) and same(before[0], net.state_dict())


def test_an_error_inside_leaves_the_network_its_own_norms():
    net, (x, *_) = network("resnet18"), batches()
    norms, own = AuxiliaryNorms(net, 2), list(net.modules())
    with pytest.raises(RuntimeError), through(net, norms, 1), through(net, norms, 2):
        net(x[:, :1, :, :, None])
    assert all(a is b for a, b in zip(own, net.modules(), strict=True))


def test_a_norm_in_two_places_is_one_norm():
    norm = nn.BatchNorm2d(3)
    net = nn.Sequential(norm, nn.ReLU(), norm).double().train()
    norms, (x, _, _) = AuxiliaryNorms(net), batches()
    assert norms.places == [["0", "2"]] and len(norms.norms(1)) == 1
    with torch.no_grad():
        Branch(net, norms)(x)
    assert norms.norms(1)[0].num_batches_tracked == 2 and norm.num_batches_tracked == 0
    assert net[0] is norm and net[2] is norm


def test_half_precision_and_another_memory_format():
    net, (_, z, y) = network("resnet18").float().train(), batches()
    net = net.to(memory_format=torch.channels_last)
    norms = AuxiliaryNorms(net)
    with torch.autocast("cpu", torch.bfloat16):
        logits = Branch(net, norms)(z.float().contiguous(memory_format=torch.channels_last))
    assert logits.dtype == torch.float32
    nn.functional.cross_entropy(logits, y).backward()
    assert all(p.grad is not None and p.dtype == torch.float32 for p in norms.parameters())
    assert all(n.running_var.dtype == torch.float32 for n in norms.norms(1))


def test_bad_input_is_one_line():
    with pytest.raises(BadInput, match=r"^AlexNet: has no batch norm: there is nothing to split$"):
        AuxiliaryNorms(torchvision.models.get_model("alexnet"))
    net = network("resnet18")
    with pytest.raises(BadInput, match="number = 0: must be at least 1"):
        AuxiliaryNorms(net, 0)
    norms = AuxiliaryNorms(net, 2)
    with pytest.raises(BadInput, match="norms 3: there are 2 sets"):
        Branch(net, norms, 3)(batches()[0])
    other = network("tv resnet18")
    own = list(other.modules())
    with pytest.raises(BadInput, match="the network has no such norm: these are another's"):
        Branch(other, norms, 1)(batches()[0])
    assert all(a is b for a, b in zip(own, other.modules(), strict=True))


def test_one_further_set_where_no_number_is_given():
    norms = AuxiliaryNorms(network("resnet18"))
    assert len(norms.sets) == 1 and norms.per_row  # of processes that share a run, too
