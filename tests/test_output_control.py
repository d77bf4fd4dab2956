"""The companion on images made to order: its runs, plans, claims, and eq. 13."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from thesis_repro import models, registry, settings
from thesis_repro import output_control as oc
from thesis_repro.atlas import where
from thesis_repro.claims import claim_table
from thesis_repro.made_to_order import ToOrder
from thesis_repro.published import claims, published
from thesis_repro.replaced import Replaced, Taught
from thesis_repro.runs import seeded

WHOLE, SMOKE = (settings.load(name, "output_control") for name in ("thesis", "smoke"))


def test_whole_runs_are_the_papers():
    cells = oc.plan_output_control_1(WHOLE)
    printed = published("output_control.1")
    assert set(zip(printed.row, printed.column, strict=True)) <= set(cells)
    for (row, _), cell in cells.items():
        assert len(cell.runs) == 5 and cell.reason == ""
        for run in cell.runs:
            assert (run.recipe.network, run.recipe.width, run.length.epochs) == ("vgg16", 1.0, 300)
            assert run.data.outline().classes == 10 and run.part == "CIFAR-10"
        data = cell.runs[0].data
        how = data.how if isinstance(data, Replaced) else getattr(run.recipe.method, "how", None)
        assert how in (None, ToOrder(100, 0.05, 0.0, 5e-4))
        assert isinstance(data, Taught) == ("in training" in row)
    assert cells["Top-1 accuracy", "30 %"].runs[0].data.share == 0.3
    assert cells["Top-1 accuracy", "30 %"].runs[0].data.own == 0.9
    assert len({r.key for c in cells.values() for r in c.runs}) == 16 * 5


def test_the_teacher_is_no_row_of_the_table():
    rows = {r.key for c in oc.plan_output_control_1(WHOLE).values() for r in c.runs}
    assert seeded(WHOLE, oc.PLAIN)[0].key in rows and oc.TEACHER.key not in rows


def test_a_stand_in_says_where_it_makes_fewer_updates():
    for (row, _), cell in oc.plan_output_control_1(SMOKE).items():
        assert ("steps 4 in place of 100" in cell.reason) == ("in training" in row)
        assert cell.reason.startswith("stand-in digits10")


def test_tables_and_figures_are_found():
    for n in range(1, 6):
        assert registry.find("figure", f"output_control.{n}").number == f"output_control.{n}"
    assert registry.find("table", "table_output_control_1") is oc.table_output_control_1
    found = where("sys-output-control")
    assert found.state == "made" and found.function.startswith("thesis_repro.output_control.")


def test_claims_are_about_cells_that_are_planned():
    own = claims("output_control")
    assert own.id.str.startswith("output_control-").all() and len(own) == 12
    planned = {("table_output_control_1", *c) for c in oc.plan_output_control_1(SMOKE)}
    planned |= {("table_output_control_noise_ours", *c) for c in oc.plan_noise(SMOKE)}
    planned |= {("table_output_control_targets_ours", *c) for c in oc.plan_targets(SMOKE)}
    from thesis_repro.claims import quantity_cells

    assert {c for q in own.quantity for c in quantity_cells(q)} <= planned


def test_the_sizes_of_the_claims_are_those_of_the_printed_table():
    table = claim_table(chapter="output_control").set_index("id")
    sized = claims("output_control").set_index("id")["size"].dropna()
    assert len(sized) == 5
    for name, size in sized.items():
        assert math.isclose(table.thesis[name], size, abs_tol=1e-3)
    assert set(table.in_thesis) == {"inconclusive", "not run"}  # nothing is printed with a spread


@pytest.mark.parametrize("gain, differs", [(5.0, True), (0.0, False)])
def test_a_rate_differs_if_its_interval_leaves_out_zero(gain, differs):
    base = (90.0, 90.4, 89.8, 90.1, 90.2)
    other = tuple(v + gain + e for v, e in zip(base, (0.1, -0.2, 0.2, -0.1, 0.05), strict=True))
    rows = [("Top-1 accuracy", "0 %", base), ("Top-1 accuracy", "30 %", other)]
    frame = pd.DataFrame(rows, columns=["row", "column", "values"])
    found = oc.differences(type("Table", (), {"frame": frame}))
    assert found.differs.tolist() == [differs] and found.low[0] < found.difference[0]
    assert math.isclose(found.difference[0], gain + 0.01, abs_tol=1e-9)
    one = oc.differences(type("Table", (), {"frame": frame.assign(values=[(90.0,), (95.0,)])}))
    assert not one.differs[0] and math.isnan(one.low[0])


@pytest.mark.parametrize("like", [None, ToOrder(5)])
def test_making_images_is_counted_by_its_updates(like):
    "They were planned as one pass of each image: a thousand updates cost nothing."
    net, seen = models.build("resnet18", 10, 0.0625).eval(), []
    net.register_forward_hook(lambda *_: seen.append("forward"))
    net.register_full_backward_hook(lambda *_: seen.append("back"))
    x, y = torch.rand(2, 3, 8, 8), torch.tensor([3, 7])
    store = SimpleNamespace(weights=lambda run: net, batch=lambda run, n: (x[:n], y[:n]))
    store.images = lambda run: SimpleNamespace(classes=10)
    asked = oc.Ordered(ToOrder(3), like, size=2)
    asked.compute(store, SimpleNamespace(data=None))
    assert asked.passes(None) == (seen.count("forward"), seen.count("back"))


def test_four_wishes_are_distributions():
    y = torch.tensor([0, 9, 3, 4])
    found = oc.four_wishes(y, 10)
    torch.testing.assert_close(found.sum(1), torch.ones(4))
    torch.testing.assert_close(found[1, [9, 0, 1]], torch.tensor([0.5, 0.3, 0.2]))
    assert (found > 0).sum(1).tolist() == [2, 3, 10, 10]


def test_vgg16_is_the_network():
    with torch.device("meta"):
        net = models.blueprint("vgg16", 10)
    assert models.parameter_count(net) == 14_724_042


# ---- eq. 13


def mnemonics():
    g = torch.Generator().manual_seed(0)
    exemplars, x = (torch.rand(n, 6, generator=g, dtype=torch.float64) for n in (3, 20))
    weights = torch.randn(6, 3, generator=g, dtype=torch.float64)
    return exemplars, torch.arange(3), weights, x, torch.arange(20) % 3


def test_relearning_is_gradient_descent():
    exemplars, y, weights, _, _ = mnemonics()
    own = weights.clone().requires_grad_()
    optimiser = torch.optim.SGD([own], 0.5)
    for _ in range(10):
        optimiser.zero_grad()
        F.cross_entropy(exemplars @ own, y).backward()
        optimiser.step()
    torch.testing.assert_close(oc.relearned(weights, exemplars, y), own.detach())


def test_the_step_of_eq_13_against_finite_differences():
    exemplars, y, weights, x, labels = mnemonics()

    def loss(e):
        return F.cross_entropy(x @ oc.relearned(weights, e, y), labels)

    moved = oc.exemplars_after(exemplars, y, weights, x, labels, 1.0)
    for i, j in ((0, 0), (1, 3), (2, 5)):
        nudge = torch.zeros_like(exemplars)
        nudge[i, j] = 1e-6
        slope = (loss(exemplars + nudge) - loss(exemplars - nudge)) / 2e-6
        assert math.isclose(exemplars[i, j] - moved[i, j], slope, rel_tol=1e-5, abs_tol=1e-9)
    assert loss(oc.exemplars_after(exemplars, y, weights, x, labels, 0.1)) < loss(exemplars)
