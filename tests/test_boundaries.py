"Margins, worst points and steps on a linear network, whose boundary is known."

import copy

import numpy as np
import pytest
import torch
import torch.nn as nn

from thesis_repro.boundaries import nearest_boundary, stepped, two_arcs, worst_point
from thesis_repro.files import BadInput


@pytest.fixture
def linear():
    net = nn.Linear(2, 2).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, -4.0]]))
        net.bias.copy_(torch.tensor([0.5, 0.0]))
    return net


def test_the_nearest_boundary_of_a_linear_network(linear):
    x = torch.tensor([[0.5, 0.2], [1.0, -0.3], [0.0, 1.0]], dtype=torch.float64)
    margin, edge = nearest_boundary(linear, x, torch.zeros(3, dtype=torch.int64), radius=3.0)
    expected = (3 * x[:, 0] + 4 * x[:, 1] + 0.5) / 5
    np.testing.assert_allclose(margin, expected, rtol=1e-3)  # the nearest of 144 directions
    assert (margin >= expected - 1e-9).all()
    np.testing.assert_allclose(linear(edge).diff(dim=1).detach(), 0, atol=1e-6)
    np.testing.assert_allclose((edge - x).norm(dim=1), margin)


def test_margins_that_there_are_not(linear):
    x = torch.tensor([[0.5, 0.2], [-5.0, -5.0]], dtype=torch.float64)
    far, _ = nearest_boundary(linear, x[:1], torch.tensor([0]), radius=0.1)
    misread, _ = nearest_boundary(linear, x[1:], torch.tensor([0]))
    assert torch.isinf(far).all() and misread.item() == 0


def test_the_worst_point_of_a_linear_network(linear):
    x = torch.tensor([[0.5, 0.2], [1.0, -0.3]], dtype=torch.float64)
    found = worst_point(linear, x, torch.tensor([0, 0]), 0.3)
    towards = torch.tensor([-3.0, -4.0], dtype=torch.float64) / 5
    np.testing.assert_allclose(found, x + 0.3 * towards, atol=0.01)
    assert ((found - x).norm(dim=1) <= 0.3 + 1e-9).all()


def test_a_step_has_its_length_goes_down_and_leaves_the_network_alone(linear):
    x, y = two_arcs(20)
    before = copy.deepcopy(linear.state_dict())
    moved = stepped(linear, x, y, 0.01)
    assert all(torch.equal(v, before[k]) for k, v in linear.state_dict().items())
    moves = [a - b for a, b in zip(moved.parameters(), linear.parameters(), strict=True)]
    length = torch.cat([m.flatten() for m in moves]).norm().item()
    assert length == pytest.approx(0.01)

    def loss(f):
        return nn.functional.cross_entropy(f(x), y).item()

    assert loss(moved) < loss(linear)


def test_no_step_is_taken_at_a_place_that_is_not_finite():
    "A margin beyond the radius made every weight of the network nan."
    net, y = torch.nn.Linear(2, 2), torch.tensor([0, 1])
    points = torch.tensor([[0.0, 1.0], [torch.inf, 0.0]])
    with pytest.raises(BadInput, match="beyond the radius"):
        stepped(net, points, y)
    assert stepped(net, points[:1], y[:1]).weight.isfinite().all()
