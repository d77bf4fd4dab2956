"The bench of GANs: what it times is a whole step of both networks, and its figures have the bars."

import pandas as pd
import pytest
import torch

from thesis_repro import bench, gan_speed, settings
from thesis_repro.gan_networks import AtInput, DcganCritic, DcganGenerator
from thesis_repro.gans import Gan
from thesis_repro.training import Compute

SMALL = {
    "DCGAN": (
        Gan(DcganGenerator(8, (16,)), DcganCritic((8, 16), AtInput())),
        gan_speed.PlainDcgan,
    ),
    "WGAN-GP PGGAN": (gan_speed.progressive(8), gan_speed.PlainProgressive),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", SMALL)
def test_a_straightforward_step_trains_both_networks(name, precision):
    recipe, kind = SMALL[name]
    nets = recipe.networks(gan_speed.synthetic_images(6, 8), 0)
    before = {k: v.clone() for k, v in nets.state_dict().items()}
    plain, y = kind(recipe, nets, Compute("cpu", precision)), torch.arange(6)
    kinds = set()
    layers = [m for m in nets.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    for layer in layers:
        layer.register_forward_hook(lambda layer, given, out: kinds.add(out.dtype))
    plain.step(torch.rand(6, 3, 8, 8), y, torch.randn(6, recipe.generator.latent), torch.rand(6))
    assert kinds == {torch.bfloat16 if precision == "bf16" else torch.float32}
    moved = {k.partition(".")[0] for k, v in nets.state_dict().items() if not v.equal(before[k])}
    assert moved == {"generator", "critic"}


@pytest.mark.parametrize("has", [True, False])
def test_the_bench_has_its_bars(monkeypatch, has):
    monkeypatch.setattr(gan_speed, "has_bf16", lambda device: has)
    preset = settings.load("smoke", device="cpu", precision="fp32")
    times = {"DCGAN": (1.0, 1.6, 0.5, 0.7), "WGAN-GP PGGAN": (2.0, 2.2, 1.0, 0.9)}
    columns = ("", ", straightforward", ", bf16", ", bf16, straightforward")
    seconds = {
        f"{name}{column}": [value] * 3
        for name, values in times.items()
        for column, value in zip(columns, values, strict=True)
    }
    monkeypatch.setattr(gan_speed, "step_seconds", lambda *a, **k: pd.DataFrame(seconds))
    # ten thousand images take a minute
    monkeypatch.setattr(gan_speed, "images_a_second", lambda n, device: pd.Series({"made": 7.0}))
    assert bench.BENCHES["gans"] == ("thesis_repro.gan_speed", "bench")
    found = {f["name"]: f for f in gan_speed.bench(preset)}
    assert found["DCGAN against the straightforward"]["value"] == pytest.approx(1.6)
    assert found["DCGAN against the straightforward"]["ok"] is (None if has else True)
    assert found["WGAN-GP PGGAN against the straightforward"]["ok"] is (None if has else False)
    half = found["DCGAN, bf16 against the straightforward in bf16"]
    assert half["value"] == pytest.approx(1.4) and half["ok"] is None
    half = found["WGAN-GP PGGAN, bf16 against the straightforward in float32"]
    assert half["value"] == pytest.approx(2.2) and half["ok"] is (True if has else None)
    assert found["generated images: made"]["value"] == 7
