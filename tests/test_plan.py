"""What a plan promises: the same work that is then done, once each, at a cost that can be checked."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from thesis_repro import aip, margin_reweighting, models, paths, plan, runs, settings, training
from thesis_repro.adversarial import Adversarial
from thesis_repro.attacks import APGD, FGSM, PGD
from thesis_repro.cli import main
from thesis_repro.mixup import Mixup, Plain
from thesis_repro.runs import Robustness, Store
from thesis_repro.zoo import ZOO

TINY = "\n[tiny]\n" + "\n".join(
    f"{k} = {v}"
    for k, v in {
        "cifar10": "faint10", "cifar100": "faint100", "svhn": "digits10_cluttered", "tiny_imagenet": "digits200",
        "epochs": 1, "batch_size": 50, "train_size": 100, "test_size": 50, "held_out": 50, "width": 0.03, "seeds": 2,
        "device": "cpu", "precision": "fp32", "jobs": 1, "attack_size": 20, "autoattack_size": 0,
        "wide_network": "resnet18",
    }.items()
)  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "A settings.ini with a tiny preset, and outputs in a temporary folder."
    text = (paths.root() / "settings.ini").read_text(encoding="utf-8") + TINY
    (tmp_path / "settings.ini").write_text(text, encoding="utf-8")
    monkeypatch.setenv("THESIS_REPRO_SETTINGS", str(tmp_path / "settings.ini"))
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path


# Counting


@pytest.mark.parametrize("name", models.ARCHITECTURES)
@pytest.mark.parametrize("width, size", [(0.125, 32), (0.0625, 8), (0.25, 64)])
def test_multiplications_are_those_that_torch_counts(name, width, size):
    net = models.build(name, 10, width)
    counted = plan.network(name, 10, width, size)
    assert counted.parts[2].tolist() == models.flops(net, size)
    assert counted.bytes == sum(t.numel() * t.element_size() for t in net.state_dict().values())
    kinds = (models.nn.Conv2d, models.nn.Linear)
    assert counted.parts[0].tolist() == [
        sum(isinstance(m, kinds) for m in s.modules()) for s in net.stages
    ]


STOPS = ("CAT (curriculum)", "DAT", "RWP", "BiLAW")  # by progress or sample; a second derivative


@pytest.mark.parametrize("name", [n for n in ZOO if n not in STOPS])
def test_the_miniature_sees_what_the_zoo_states(name):
    "The zoo counts whole networks at their first layer, so a pass that ends before the last stage may differ by one."
    assert plan.passes(ZOO[name].method).sum() / 4 == pytest.approx(ZOO[name].cost, abs=1)


@pytest.mark.parametrize("name", ["DAT", "Free AT", "Madry AT"])
def test_a_row_of_the_zoo_costs_what_it_states(name):
    "Also where its search stops at once on the miniature, and whatever its best epoch is chosen by."
    method = dataclasses.replace(ZOO[name].method, selection=None)
    walked = plan._walked(plan._method(method))
    assert walked.sum() / 4 == pytest.approx(ZOO[name].cost) and walked[2].tolist() == [1.0] * 4


@pytest.mark.parametrize("rounds", [2, 6, 20])
def test_a_search_walks_only_what_lies_above_its_layer(rounds):
    searches = 2 * (rounds - 1)  # the first round needs no pass; none at the image
    walked = plan.passes(aip.aip("ternary", rounds))
    assert walked[0].tolist() == [1 + searches * below / 4 for below in (0, 1, 2, 3)]
    assert walked[1:].tolist() == [[1.0] * 4] * 2


def test_weights_are_walked_once_a_step_and_never_by_an_attack():
    for steps in (1, 7):
        walked = plan.passes(Adversarial(PGD(steps=steps)))
        assert walked[:, 0].tolist() == [steps + 1, steps + 1, 1]
    assert (
        plan.passes(Plain("ce"))[:, 0].tolist() == [1, 1, 1] == plan.passes(Mixup())[:, 0].tolist()
    )


@pytest.mark.parametrize(
    "attack, forward, backward",
    [
        (None, 1, 0),
        (FGSM(), 3, 1),
        (PGD(steps=20), 22, 20),
        (PGD(steps=5, restarts=3), 19, 15),
        (APGD(steps=50), 52, 50),
    ],
)
def test_passes_of_an_attack(attack, forward, backward):
    assert plan.attack_passes(attack)[:, 0].tolist() == [forward, backward, 0]


def test_seconds_follow_launches_and_images():
    net, walked = plan.network("resnet18", 10, 1.0, 32), np.ones((3, 4))
    one, many = (plan.pass_seconds(walked, net, n, launched=1) for n in (1, 1001))
    none = plan.pass_seconds(walked, net, 0, launched=1)
    assert none == pytest.approx((68 + 109 + 97) * 1e-6 * 21)
    assert many - none == pytest.approx(1001 * (one - none))


# The same work as is done


def captured(monkeypatch, preset, make):
    "The keys of the runs that `make` would train, and the measurements that it would attack for."
    trained, attacked, store = {}, set(), Store(preset)

    def side_by_side(_, attempt, tasks, **words):
        if attempt is runs._attempt:
            trained.update({t[0].key: t[0] for t in tasks})
        else:
            attacked.update(
                runs._measured(store, "robustness", runs._attacked(store, *t)).stem for t in tasks
            )
        return {}

    monkeypatch.setattr(runs.launch, "side_by_side", side_by_side)
    make(store)
    return trained, attacked


@pytest.mark.parametrize("number", ["6.7", "5.4", "7.3"])
def test_a_plan_is_what_a_table_would_make(monkeypatch, number):
    preset = settings.load("tiny", int(number[0]))
    module = plan._module(next(p.home for p in plan.places() if p.number == number))
    cells = getattr(module, f"runs_{number.replace('.', '_')}")(preset)

    def make(store):  # as `report.table_of_runs`, with attacks on runs that are not there
        wanted = [r for p in cells.values() for r in p.runs]
        attacks = [
            (r, p.metric) for p in cells.values() if not isinstance(p.metric, str) for r in p.runs
        ]
        store.ensure([*wanted, *(s for _, m in attacks for s in m.sources)])
        runs.attack_all(store, attacks)

    trained, attacked = captured(monkeypatch, preset, make)
    tasks = plan.plan("tiny", table=number)["tasks"]
    assert {t["key"] for t in tasks if t["kind"] == "run"} == set(trained) and trained
    assert {t["key"] for t in tasks if t["kind"] == "attack"} == attacked
    assert not any(t["present"] for t in tasks) and all(
        t["seconds"] > 0 and t["bytes"] > 0 for t in tasks
    )


def test_shared_work_is_counted_once_for_the_first_table():
    both, alone = (
        plan.plan("tiny", chapter="6"),
        {n: plan.plan("tiny", table=n) for n in ("6.1", "6.3")},
    )
    keys = [t["key"] for t in both["tasks"]]
    assert len(keys) == len(set(keys))
    rows = {t["table"]: t for t in both["tables"]}
    assert (
        rows["6.3"]["runs_to_make"] == 0 < rows["6.3"]["attacks_to_make"]
    )  # it reads table 6.1's runs
    assert alone["6.3"]["total"]["runs_to_make"] == rows["6.1"]["runs_to_make"]
    for k in ("runs_to_make", "attacks_to_make", "seconds", "wall_seconds", "bytes"):
        total = sum(r[k] for r in rows.values())
        assert both["total"][k] == pytest.approx(total) == pytest.approx(both["chapters"][0][k])
    assert both["total"]["seconds"] == pytest.approx(sum(t["seconds"] for t in both["tasks"]))
    assert alone["6.1"]["total"]["seconds"] + rows["6.3"]["seconds"] < both["total"]["seconds"]


def test_the_wall_clock_sees_jobs_but_never_less_than_the_longest_task():
    one, four, many = (plan.plan("tiny", table="6.1", jobs=j)["total"] for j in (1, 4, 4096))
    assert (
        one["wall_seconds"]
        == pytest.approx(one["seconds"])
        == pytest.approx(4 * four["wall_seconds"])
    )
    longest = plan.plan("tiny", table="6.1")["tasks"]
    assert many["wall_seconds"] == pytest.approx(
        sum(max(t["seconds"] for t in longest if t["kind"] == k) for k in ("run", "attack"))
    )


def test_cost_grows_with_epochs_and_seeds():
    cost = lambda **how: plan.plan("tiny", table="7.1", **how)["total"]
    base = cost()
    assert cost(epochs=10)["seconds"] == pytest.approx(10 * base["seconds"])
    assert cost(seeds=6)["seconds"] == pytest.approx(3 * base["seconds"])
    assert cost(seeds=6)["bytes"] == 3 * base["bytes"]


def test_parts_are_planned_alone():
    whole, part = plan.plan("tiny", table="7.1"), plan.plan("tiny", table="7.1", parts=("SVHN",))
    assert 4 * part["total"]["runs_to_make"] == whole["total"]["runs_to_make"]


# What has been recorded


@pytest.fixture
def made():
    "The runs of one row of table 6.1, seed 0 trained and attacked."
    preset = settings.load("tiny", 6)
    cells = margin_reweighting.runs_6_1(preset, ("CIFAR-10",))
    row = {c: p for (r, c), p in cells.items() if r == "ResNet-18 / MAIL"}
    store = Store(preset)
    zero, one = row["Clean"].runs
    record = store.make(zero, progress=False)
    runs.outcome(store, zero, row["PGD-100"].metric)
    return store, zero, one, record, row


def test_what_is_there_is_not_made_again_and_tells_what_the_rest_costs(made):
    store, zero, one, record, row = made
    found = plan.plan("tiny", table="6.1")
    by = {t["key"]: t for t in found["tasks"]}
    assert by[zero.key]["present"] and by[zero.key]["seconds"] == 0
    assert by[one.key]["source"] == "recorded" and by[one.key]["seconds"] == pytest.approx(
        record.cost["seconds"]
    )
    runs_by = {
        t["name"]: t["source"]
        for t in found["tasks"]
        if t["kind"] == "run" and t["key"] != zero.key
    }
    alike = {
        n for n in runs_by if "-mail-" in n and "ours" not in n
    }  # the other network is played by the same one
    assert {runs_by[n] for n in alike} == {"recorded"}
    assert {s for n, s in runs_by.items() if n not in alike} == {"nearby record"}
    attacks = [t for t in found["tasks"] if t["kind"] == "attack"]
    assert [t["present"] for t in attacks].count(True) == 1 == found["total"]["attacks_present"]
    name = runs._measured(
        store, "robustness", runs._attacked(store, one, row["PGD-100"].metric)
    ).stem
    kept = json.loads(next((store.folder / "measurements").glob("robustness-*.json")).read_text())
    assert by[name]["source"] == "recorded" and by[name]["seconds"] == pytest.approx(
        kept["cost"]["seconds"]
    )
    again = plan.plan("tiny", table="6.1", epochs=5)  # other runs, of the same kind
    longer = next(t for t in again["tasks"] if t["name"].startswith("resnet-18-mail-seed-0"))
    assert longer["source"] == "recorded" and longer["seconds"] == pytest.approx(
        5 * record.cost["seconds"]
    )


def test_a_damaged_record_counts_as_absent(made):
    _, zero, _, record, _ = made
    (record.folder / "record.json").write_text("{}")
    assert not next(t for t in plan.plan("tiny", table="6.1")["tasks"] if t["key"] == zero.key)[
        "present"
    ]


def test_the_bytes_of_a_run_are_those_on_the_disk(made, tmp_path):
    _, zero, _, record, _ = made
    assert plan.disk(zero) == pytest.approx(
        sum(f.stat().st_size for f in record.folder.iterdir()), rel=0.25
    )
    cells = aip.runs_7_1(
        settings.load("tiny", 7, width=0.25, epochs=500)
    )  # here the weights decide
    run = cells["Baseline", "Last / CIFAR-100"].runs[0]
    net = models.build(run.model, 100, run.width)
    training.save_checkpoint(
        tmp_path / "weights.ckpt", {k: training.copy_weights(net) for k in ("last", "best")}
    )
    assert plan.disk(run) == pytest.approx((tmp_path / "weights.ckpt").stat().st_size, rel=0.05)


def test_another_device_has_its_own_records(made):
    found = plan.plan("tiny", table="6.1", device="cuda", precision="fp32")
    if not plan.torch.cuda.is_available():
        assert found["device"] == "cuda" and found["jobs"] == 1
        assert set(found["total"]["rests_on"]) == {"counted operations"}
        assert found["total"]["gpu_hours"] == pytest.approx(found["total"]["seconds"] / 3600) != 0
        assert found["total"]["runs_present"] == 1  # a record is the same wherever it was made


def paid_for(runs_and_seconds, device="cpu"):
    "Evidence that holds these costs alone."
    evidence = plan.Evidence(device)
    evidence.paid = [
        plan.Paid(r.key, r, *plan._kinds(r), plan._sizes(r)[0] * r.schedule.epochs, s)
        for r, s in runs_and_seconds
    ]
    for p in evidence.paid:
        evidence.same.setdefault(p.kind, []).append(p)
        for group in (p.near, p.run.bf16):
            evidence.near.setdefault(group, []).append(p)
    return evidence


def test_each_record_is_judged_without_itself():
    cells = aip.runs_7_1(settings.load("tiny", 7))
    a, b = cells["Baseline", "Last / CIFAR-10"].runs
    other = cells["AIP", "Last / CIFAR-10"].runs[0]
    evidence = paid_for([(a, 10.0), (b, 20.0), (other, 3 * plan.counted(other))])
    assert evidence.predict(a) == (pytest.approx(15.0), "recorded")
    assert evidence.predict(a, but=a.key) == (pytest.approx(20.0), "recorded")
    checked = plan.checked(evidence, [a.key, b.key])
    assert checked.pop("rests_on") == {"recorded": 2} and checked.pop("runs") == 2
    assert checked == pytest.approx({"total": 1.0, "median": 1.25, "worst": 2.0})
    alone = paid_for([(other, 3 * plan.counted(other))])
    seconds, source = alone.predict(a)
    assert source == "nearby record" and seconds == pytest.approx(3 * plan.counted(a))
    assert alone.predict(other, but=other.key)[1] == "counted operations"
    assert plan.checked(evidence, ["nothing"]) is None


def test_neighbours_are_the_networks_nearest_in_size():
    small, large = settings.load("tiny", 7), settings.load("tiny", 7, width=1.0)
    of = lambda p, row: aip.runs_7_1(p)[row, "Last / CIFAR-10"].runs
    near, far = of(small, "mixup"), of(settings.load("tiny", 7, width=1.0, seeds=20), "mixup")
    many = of(settings.load("tiny", 7, seeds=20), "mixup")  # more than are asked
    assert set(near) < set(many)
    evidence = paid_for(
        [(r, 2 * plan.counted(r)) for r in many] + [(r, 50 * plan.counted(r)) for r in far]
    )
    assert evidence.ratio(of(large, "AIP")[0]) == pytest.approx(50)
    assert evidence.ratio(of(small, "AIP")[0]) == pytest.approx(2)


def test_fewer_images_standing_cost_less():
    preset = settings.load("tiny", 6, width=1.0, attack_size=0, test_size=500)
    run = margin_reweighting.runs_6_1(preset)["ResNet-18 / MAIL", "Clean"].runs[0]
    attack, evidence = Robustness(PGD(steps=100)), paid_for([])
    stood = plan.Attacked(plan.Shelf(preset))
    unknown, source = stood.predict(run, attack, evidence)
    stood.shares[plan._piece(attack.attack), run.dataset] = [1.0]
    all_stand, _ = stood.predict(run, attack, evidence)
    stood.shares[plan._piece(attack.attack), run.dataset] = [0.4, 0.6]
    half, _ = stood.predict(run, attack, evidence)
    stood.shares[plan._piece(attack.attack), run.dataset] = [0.0]
    none, _ = stood.predict(run, attack, evidence)
    assert (
        source == "counted operations"
        and none < unknown < half < all_stand
        and half == pytest.approx(all_stand / 2, rel=0.2)
    )


# The command


def test_the_command_prints_a_table_and_json(capsys):
    assert main(["plan", "--preset", "tiny", "--chapter", "7"]) == 0
    text = capsys.readouterr().out
    for words in (
        "table 7.4",
        "chapter 7",
        "core time",
        "counted operations",
        "not predicted",
        "table 7.5, figure 7.1",
    ):
        assert words in text
    assert main(["plan", "--preset", "tiny", "--table", "7.4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [t["table"] for t in found["tables"]] == ["7.4"] and found["not_predicted"] == []
    assert not paths.outputs("tiny").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--table", "9.9"], "7.4"),
        (["--table", "7.5"], "no runs"),
        (["--table", "3.1"], "not made yet"),
        (["--chapter", "3"], "unknown chapter"),
        (["--preset", "none"], "unknown preset"),
        (["--parts", "MNIST"], "unknown data set"),
        (["--seeds", "0"], "seeds"),
    ],
)
def test_bad_input_is_one_line(capsys, words, said):
    assert main(["plan", "--preset", "tiny", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err


def test_an_archive_is_read_by_its_heads(tmp_path):
    x, y = np.zeros((40, 12, 12, 3), np.uint8), np.arange(40) % 7
    np.savez_compressed(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x[:9], y_test=y[:9])
    assert plan.shape(f"npz:{tmp_path}/own.npz") == plan.Shape(7, 12, 40, 9)
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    for name in ("broken.npz", "missing.npz"):
        with pytest.raises(settings.BadInput):
            plan.shape(f"npz:{tmp_path}/{name}")
    for i, y in enumerate((["cat"] * 40, [np.nan] * 40, np.arange(40).astype("M8[D]"), [])):
        np.savez(tmp_path / f"{i}.npz", x_train=x, y_train=np.array(y), x_test=x, y_test=[0] * 40)
        with pytest.raises(settings.BadInput, match=r"npz: y_train (is|has)"):
            plan.shape(f"npz:{tmp_path}/{i}.npz")
    with pytest.raises(settings.BadInput):
        plan.shape("mnist")


def test_nothing_heavy_is_imported_and_no_gpu_is_woken():
    code = (
        "import sys\nfrom thesis_repro.cli import main\nassert main(['plan', '--preset', 'tiny', '--json']) == 0\n"
        "import torch\nheavy = {'torchvision', 'matplotlib', 'seaborn', 'papermill', 'nbconvert', 'torch._dynamo', 'sklearn'}\n"
        "print(sorted(heavy & sys.modules.keys()), torch.cuda.is_initialized(), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        done.stderr.strip().endswith("[] False")
        and json.loads(done.stdout)["total"]["runs_to_make"] > 0
    )
