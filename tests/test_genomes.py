"""Genomes: what they cost, which are in a space, and that chance alone decides about mutants."""

from dataclasses import replace

import pytest
import torch

from thesis_repro import models, settings
from thesis_repro.checkpoints import weights_digest
from thesis_repro.draws import Draws
from thesis_repro.files import BadInput
from thesis_repro.genomes import (
    PLAIN_NET,
    SPACE,
    Genome,
    Grown,
    Layer,
    Space,
    changed,
    longer,
    multiplications,
    mutated,
    random_genome,
    shorter,
)
from thesis_repro.mixup import Plain
from thesis_repro.pieces import from_specification, specification
from thesis_repro.replaced import TaughtImages
from thesis_repro.runs import Named

ODD = Genome((Layer(6, 5, "tanh", "none", "mean"), Layer(10, 1, "silu", pool="max"), Layer(4)))


def parameters(genome, classes, channels=3):
    "Weights and biases of the convolutions, two numbers per normalised channel, the last layer."
    total = 0
    for layer in genome.layers:
        total += layer.kernel**2 * channels * layer.width
        total += layer.width if layer.norm == "none" else 2 * layer.width  # batch, group
        channels = layer.width
    return total + channels * classes + classes


@pytest.mark.parametrize("genome", [PLAIN_NET, ODD])
def test_parameters_and_multiplications_by_hand(genome):
    net = genome.build(7)
    assert models.parameter_count(net) == parameters(genome, 7)
    counted = models.flops(net, 32)[:-1]  # without the linear layer
    assert sum(counted) == multiplications(genome)


def test_odd_sizes_are_halved_upwards():
    assert ODD.build(3)(torch.rand(2, 3, 15, 15)).shape == (2, 3)
    rows = multiplications(ODD, (3, 15, 15))
    assert rows == 25 * 3 * 6 * 225 + 6 * 10 * 64 + 9 * 10 * 4 * 16


def test_weights_are_a_function_of_the_seed():
    digests = [weights_digest(ODD.build(3, seed=s).state_dict()) for s in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    before = torch.random.get_rng_state()
    ODD.build(3)
    assert torch.equal(before, torch.random.get_rng_state())


def test_random_genomes_and_mutants_stay_in_the_space():
    for seed in range(20):
        genome = random_genome(SPACE, Draws(seed))
        child = mutated(genome, SPACE, Draws(seed))
        assert genome in SPACE and child in SPACE and child != genome
        assert child == mutated(genome, SPACE, Draws(seed))


def test_mutants_are_one_step_away():
    near = changed(PLAIN_NET, SPACE)
    choices = sum(len(v) - 1 for v in SPACE.choices.values())
    assert len(near) == len(set(near)) == len(PLAIN_NET.layers) * choices
    for genome in near:
        pairs = zip(PLAIN_NET.layers, genome.layers, strict=True)
        fields = [k for a, b in pairs for k in vars(a) if getattr(a, k) != getattr(b, k)]
        assert len(fields) == 1
    for genome in longer(PLAIN_NET, SPACE):
        pools = [[x.pool for x in g.layers if x.pool != "none"] for g in (genome, PLAIN_NET)]
        assert len(genome.layers) == 6 and pools[0] == pools[1]
    assert {len(g.layers) for g in shorter(PLAIN_NET, SPACE)} == {4}
    assert shorter(Genome((Layer(),)), SPACE) == []


def test_what_is_in_a_space():
    assert PLAIN_NET in SPACE and Genome((Layer(32, 7), Layer(32, pool="max"))) not in SPACE
    flat = Genome(tuple(replace(layer, pool="none") for layer in PLAIN_NET.layers))
    assert flat not in SPACE  # no pooling, and far too dear
    assert flat in replace(SPACE, poolings=(0, 3), cost=(0.0, 50.0))


def test_a_genome_can_be_written_down():
    spec = specification(Grown(ODD, Plain()))
    assert from_specification(spec) == Grown(ODD, Plain())
    assert str(ODD).startswith("6k5 tanh mean | 10k1 silu batch max")


def test_images_may_bring_their_own_genome():
    images = Named("digits10", 40, 20, 20).images()
    recipe = Grown(PLAIN_NET, Plain(), width=0.25)
    assert len(recipe.classifier(images, 0).stages) == 2 + len(PLAIN_NET.layers)
    parts = {k: getattr(images, k) for k in images.__dataclass_fields__}
    other = TaughtImages(**parts)
    other.genome = ODD
    assert len(recipe.classifier(other, 0).stages) == 2 + len(ODD.layers)
    assert recipe.scaled(settings.load("smoke")).width == 0.125


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Layer(kernel=4), "kernel = 4: must be one of 1, 3, 5, 7"),
        (lambda: Layer(activation="sine"), "activation = sine: must be one of"),
        (lambda: Genome(()), "must have one Layer at least"),
        (lambda: Space(layers=(4, 2)), "the lower one first"),
        (lambda: Space(kernels=()), "must have a choice at least"),
        (lambda: Grown("resnet18", Plain()), "Grown: network = resnet18: must be a Genome"),
        (lambda: random_genome(Space(cost=(0.0, 0.0), like=PLAIN_NET), Draws(0)), "widen cost"),
        (lambda: mutated(ODD, Space(cost=(0.0, 0.0), like=PLAIN_NET), Draws(0)), "none of its mut"),
    ],
)
def test_bad_input_in_one_line(make, says):
    with pytest.raises(BadInput, match=says) as e:
        make()
    assert "\n" not in str(e.value)
