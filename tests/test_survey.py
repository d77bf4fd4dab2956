"""Pages that ask people: what they hold, which answers are let in, and what is made of them."""

import dataclasses
import itertools
import json
import math
import re
from collections import Counter

import numpy as np
import pytest
import torch

from thesis_repro import preferences, selection, settings, survey, wcgan
from thesis_repro.augmented import Augmented
from thesis_repro.cli import main
from thesis_repro.files import BadInput, atomic_json
from thesis_repro.pieces import from_specification, specification
from thesis_repro.runs import Named, Run, scaled
from thesis_repro.store import Store
from thesis_repro.survey import ANSWERS, CHOICE, Pair, Survey

NAMES = ("Red", "Framed")
METHODS = (("old", "new"), ("a", "b"))


def pictures(n: int, seed: int = 0, side: int = 8) -> dict:
    "So many images of noise, by checksum."
    draw = torch.Generator().manual_seed(seed)
    made = torch.randint(0, 256, (n, 3, side, side), generator=draw, dtype=torch.uint8)
    return {survey.checksum(x): x for x in made}


def a_survey(each: int = 10, repeats: int = 4, seed: int = 0, made=None) -> tuple[Survey, dict]:
    "A survey of two comparisons, and its images."
    images = pictures(4 * each)
    sums = iter(images)
    pairs = [
        Pair((NAMES[i % 2],), pair, (next(sums), next(sums)))
        for pair in METHODS
        for i in range(each)
    ]
    made = made or {m: {"run": m, "weights": m * 2} for pair in METHODS for m in pair}
    return Survey(NAMES, survey.arranged(pairs, repeats, seed), made), images


def for_method(*preferred):
    "Choose by whose the picture is."

    def choice(p: Pair) -> str:
        return next((s for s, m in zip(survey.SIDES, p.methods, strict=True) if m in preferred), "")

    return choice


def answers(found: Survey, person: str, choice, n: int = 10**6) -> dict:
    "What the page saves."
    how = {"at": "2026-11-29T12:00:00.000Z", "seconds": 2.5}
    said = [{"pair": p.id, "choice": choice(p), **how} for p in found.pairs[:n]]
    return {"format": ANSWERS, "survey": found.id, "person": person, "answers": said}


# A survey


def test_each_method_is_on_the_left_in_half_of_its_pairs_and_some_come_twice():
    for seed in range(5):
        found, _ = a_survey(11, 6, seed)
        first = [p for p in found.pairs if p.again < 0]
        for pair in METHODS:
            left = Counter(p.methods[0] for p in first if set(p.methods) == set(pair))
            assert sorted(left.values()) == [5, 6]
        again = [p for p in found.pairs if p.again >= 0]
        assert len(again) == 6 and len(first) == 22
        for p in again:
            before = found.pairs[p.again]
            assert before.again < 0 and before.images == p.images[::-1]
            assert before.methods == p.methods[::-1] and before.asked == p.asked
            assert p.place - before.place > 4
        assert [p.place for p in found.pairs] == list(range(28))
    assert len({p.id for p in found.pairs}) == 28


def test_the_order_is_a_function_of_the_seed_and_mixes_comparisons():
    assert a_survey()[0] == a_survey()[0] and a_survey()[0].id != a_survey(seed=1)[0].id
    found, _ = a_survey(30, 0)
    kinds = [p.methods[0] in METHODS[0] for p in found.pairs]
    assert 20 < sum(a != b for a, b in itertools.pairwise(kinds)) < 40
    assert {p.images[0] for p in found.pairs} != {p.images[0] for p in a_survey(30, 0, 1)[0].pairs}


def test_another_image_another_condition_and_other_weights_are_another_survey():
    found, _ = a_survey()
    first = found.pairs[0]
    others = [
        dataclasses.replace(first, images=(first.images[0], "0" * 16)),
        dataclasses.replace(first, asked=()),
        survey.turned(first),
    ]
    ids = {dataclasses.replace(found, pairs=(p, *found.pairs[1:])).id for p in others}
    ids |= {found.id, dataclasses.replace(found, made={}).id}
    assert len(ids) == 5


@pytest.mark.parametrize("repeats", [-1, 11])
def test_too_many_repeats_are_refused(repeats):
    with pytest.raises(BadInput, match=f"repeats = {repeats}: must be from 0 to 10"):
        a_survey(10, repeats)


def test_a_checksum_is_one_of_shape_and_pixels():
    x = torch.zeros(3, 4, 4, dtype=torch.uint8)
    y = x.clone()
    y[0, 0, 0] = 1
    assert len({survey.checksum(v) for v in (x, y, x.view(3, 2, 8), x.view(1, 6, 8))}) == 4
    assert survey.checksum(y.permute(0, 2, 1)) == survey.checksum(y.permute(0, 2, 1).contiguous())


def test_an_image_on_a_page_is_the_image():
    import base64
    import io

    from PIL import Image

    for channels in (1, 3):
        x = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
        file = io.BytesIO(base64.b64decode(survey.png(x).partition(",")[2]))
        back = np.array(Image.open(file)).reshape(5, 7, channels)
        assert np.array_equal(back, x.permute(1, 2, 0).numpy())


def test_a_page_says_nothing_of_methods_and_asks_for_nothing(tmp_path):
    found, images = a_survey(made={m: {"run": "secret-run"} for p in METHODS for m in p})
    page = survey.written(tmp_path, found, images).read_text("utf-8")
    content = json.loads(re.search(r'id="content">(.*?)</script>', page)[1])
    assert content["pairs"][0].keys() == {"id", "asked", "left", "right"}
    assert "secret-run" not in page and "methods" not in json.dumps(content)
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:)""", page) and "http" not in page
    assert set(content["images"]) == set(images)
    assert survey.read_survey(tmp_path / f"survey-{found.id}.json") == found


def test_what_is_in_a_page_cannot_leave_its_place():
    text = survey.page(
        "survey", "<b>", {"kind": "</script><script>alert(1)</script>"}, count=1, minutes=1
    )
    assert "alert(1)</script>" not in text and "&lt;b&gt;" in text


def test_a_changed_survey_is_refused(tmp_path):
    found, images = a_survey()
    survey.written(tmp_path, found, images)
    file = tmp_path / f"survey-{found.id}.json"
    said = json.loads(file.read_text())
    said["pairs"][0]["methods"].reverse()
    atomic_json(file, said)
    with pytest.raises(BadInput, match="was changed since its page was made"):
        survey.read_survey(file)
    for wrong in ({"pairs": 3}, {"pairs": [{"x": 1}]}, {"names": None}):
        atomic_json(file, said | wrong)
        with pytest.raises(BadInput, match="damaged"):
            survey.read_survey(file)


# Answers come in


@pytest.fixture
def there(tmp_path):
    "A survey in a folder: the survey, its folder, where files come from."
    found, images = a_survey()
    survey.written(tmp_path / "people", found, images)
    return found, tmp_path / "people", tmp_path


def kept(folder) -> list:
    "The files of answers in a folder."
    return sorted(folder.glob("*-*/*"))


def test_sound_answers_are_kept_as_they_are_and_nothing_more(there):
    found, folder, home = there
    said = answers(found, "  Ada \n L ", for_method("new", "a"), 12) | {"more": "junk"}
    said["answers"][0]["more"] = "junk"
    [file] = survey.take_answers([atomic_json(home / "a.json", said)], folder)
    assert "junk" not in file.read_text() and kept(folder) == [file]
    assert survey.answered(folder, found).keys() == {"Ada L"}


ONE = {"pair": "0" * 12, "choice": "left", "at": "2026-11-29T12:00:00Z", "seconds": 1}


def changed(said: dict, **first) -> dict:
    "The same with another first answer."
    return said | {"answers": [said["answers"][0] | first, *said["answers"][1:]]}


BAD = {
    "never shown": lambda s: s | {"answers": [*s["answers"], ONE]},
    "is answered twice": lambda s: s | {"answers": [*s["answers"], s["answers"][0]]},
    "another survey: 0123456789ab": lambda s: s | {"survey": "0123456789ab"},
    "another survey: ../../x is not": lambda s: s | {"survey": "../../x"},
    "another survey: 5": lambda s: s | {"survey": 5},
    "its format is thesis_repro choice 1": lambda s: s | {"format": CHOICE},
    "its format is none": lambda s: [s],
    "its format is None": lambda s: {},
    "not say whose": lambda s: s | {"person": "  "},
    "say whose file": lambda s: s | {"person": "x" * 61},
    "say whose file it": lambda s: s | {"person": 7},
    "whose file it is": lambda s: s | {"person": "\ud800"},
    "no list of answers": lambda s: s | {"answers": {"a": 1}},
    "not an answer": lambda s: s | {"answers": [*s["answers"], "left"]},
    "not an answer to": lambda s: changed(s, pair=["x"]),
    "must be left, right or neither": lambda s: changed(s, choice="both"),
    "left, right or neither": lambda s: changed(s, choice=["left"]),
    "not say when": lambda s: changed(s, at="yesterday"),
    "does not say when": lambda s: changed(s, at=None),
    "say when, and how": lambda s: changed(s, seconds=-1),
    "when, and how long": lambda s: changed(s, seconds=True),
    "and how long": lambda s: changed(s, seconds=math.nan),
    "11 of 24 pairs are answered: at least half": lambda s: s | {"answers": s["answers"][:11]},
}


@pytest.mark.parametrize("words", BAD)
def test_bad_answers_are_one_line_and_nothing_is_kept(there, words):
    found, folder, home = there
    good = atomic_json(home / "good.json", answers(found, "Ada", for_method("new", "a")))
    bad = home / "bad.json"
    bad.write_text(json.dumps(BAD[words](answers(found, "Bo", for_method("new", "a")))))
    with pytest.raises(BadInput, match=re.escape(words)) as e:
        survey.take_answers([good, bad], folder)
    assert str(e.value).count(str(bad)) == 1 and str(e.value).startswith(str(bad))
    assert kept(folder) == []


@pytest.mark.parametrize(
    "text, words",
    [
        ('{"format": ', "damaged, no JSON"),
        ("", "damaged, no JSON"),
        ("\x00\xff", "damaged, no JSON"),
        ("[" * 100_000, "damaged, no JSON"),
        ("<html>", "damaged, no JSON"),
        (None, "cannot be read"),
    ],
)
def test_files_that_are_none(there, text, words):
    _, folder, home = there
    if text is not None:
        (home / "bad.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadInput, match=words):
        survey.take_answers([home / "bad.json"], folder)
    assert kept(folder) == []


def test_a_file_that_is_too_large_is_not_read(there):
    _, _, home = there
    (home / "large.json").write_text(" " * 2000)
    with pytest.raises(BadInput, match="has more than 0 MB"):
        survey.loaded(home / "large.json", ANSWERS, limit=1000)


def test_a_person_answers_once_under_any_capitals(there):
    found, folder, home = there
    files = [
        atomic_json(home / f"{i}.json", answers(found, person, for_method("new", "a")))
        for i, person in enumerate(("Ada", "ADA", "Bo"))
    ]
    with pytest.raises(BadInput, match=r"1\.json: ADA has answered already$"):
        survey.take_answers(files, folder)
    assert kept(folder) == []
    [first] = survey.take_answers(files[:1], folder)
    with pytest.raises(BadInput, match=f"1.json: ADA has answered already: remove {first} first"):
        survey.take_answers([files[2], files[1]], folder)
    assert kept(folder) == [first]
    first.unlink()
    assert len(survey.take_answers(files[1:], folder)) == 2


# The score


def test_shares_are_counted_by_hand():
    found, _ = a_survey(10, 0)
    first = [p for p in found.pairs if "new" in p.methods]
    said = {p.id: for_method("new")(p) for p in first[:6]}
    said |= {first[6].id: "neither", first[7].id: for_method("old")(first[7])}
    assert survey.shares(found, said) == {"new": 100 * 6.5 / 8, "old": 100 * 1.5 / 8}


def test_pairs_that_come_again_do_not_count_but_tell_of_consistency():
    found, _ = a_survey(10, 4)
    by_method = {p.id: for_method("new", "a")(p) for p in found.pairs}
    assert survey.consistency(found, by_method) == (4, 4)
    again = {p.id: for_method("old", "b")(p) for p in found.pairs if p.again >= 0}
    assert survey.shares(found, by_method | again) == survey.shares(found, by_method)
    assert survey.consistency(found, by_method | again) == (0, 4)
    by_side = {p.id: "left" for p in found.pairs}
    assert survey.consistency(found, by_side) == (0, 4)
    assert survey.shares(found, by_side) == dict.fromkeys(found.made, 50)
    assert survey.consistency(found, {p.id: "neither" for p in found.pairs}) == (4, 4)
    assert survey.consistency(found, {found.pairs[0].id: "left"}) == (0, 0)


def test_the_interval_is_one_of_people():
    rng = np.random.default_rng(0)
    said = rng.random((12, 150)) < rng.normal(0.6, 0.1, (12, 1))
    value, low, high = survey.score(100 * said.mean(1), resamples=20_000)
    expected = preferences.score_interval(said)
    np.testing.assert_allclose((value, low, high), expected, rtol=0.01)
    assert survey.score([40, 60]) == survey.score([40, 60])
    assert survey.score([0, 100])[1:] == (0, 100)


def test_one_person_has_a_score_and_no_interval_and_nobody_has_none():
    value, low, high = survey.score([55.0])
    assert value == 55 and math.isnan(low) and math.isnan(high)
    with pytest.raises(BadInput, match="a score of nobody"):
        survey.score([])


def test_one_person_is_one_number_however_many_surveys_she_answers(there):
    found, folder, home = there
    more, images = a_survey(seed=1)
    survey.written(folder, more, images)
    for one, person, prefers in ((found, "Ada", "new"), (more, "ADA", "old"), (more, "Bo", "old")):
        said = answers(one, person, for_method(prefers, "a"))
        survey.take_answers([atomic_json(home / "x.json", said)], folder)
    scores = {m: sorted(values) for m, values in survey.scores_of(folder, found.made).items()}
    assert scores == {"old": [50, 100], "new": [0, 50], "a": [100, 100], "b": [0, 0]}


def test_only_answers_to_the_images_of_todays_weights_count(there):
    found, folder, home = there
    for i, person in enumerate(("Ada", "Bo")):
        said = answers(found, person, for_method("new", "a") if i else for_method("old", "a"))
        survey.take_answers([atomic_json(home / "x.json", said)], folder)
    scores = {m: sorted(values) for m, values in survey.scores_of(folder, found.made).items()}
    assert scores == {"old": [0, 100], "new": [0, 100], "a": [100, 100], "b": [0, 0]}
    other = found.made | {"new": {"run": "new", "weights": "later"}}
    assert survey.scores_of(folder, other) == {m: [] for m in found.made}
    told = survey.told(folder, found)
    assert "2 people" in told and "the same image again in 8 of 8" in told


# A selection


def a_choice(**changes) -> dict:
    "What the page saves of a selection."
    return {"format": CHOICE, "person": "Ada", "dropped": [], **changes}


@pytest.fixture
def offered(tmp_path):
    "A selection in a folder: it, its folder, where files come from."
    images = pictures(6)
    found = survey.grouped(
        torch.stack([*images.values()]), ["Red"] * 3 + ["Framed"] * 3, {"run": 1}
    )
    survey.offered(tmp_path / "people", found, images)
    return found, tmp_path / "people", tmp_path


def test_equal_images_are_shown_once():
    x = torch.stack([*pictures(2).values()])
    found = survey.grouped(torch.cat([x, x]), ["Red", "Red", "Framed", "Red"], {})
    assert found.groups == {"Red": [*pictures(2)]} and found.shown == [*pictures(2)]


BAD_CHOICES = {
    "was never shown": lambda s, shown: s | {"kept": [*shown, "0" * 16]},
    "is decided twice": lambda s, shown: s | {"kept": shown[:2], "dropped": shown[1:]},
    "decided twice": lambda s, shown: s | {"kept": [shown[0]] * 2},
    "no lists": lambda s, shown: s | {"kept": "all"},
    "no lists of kept": lambda s, shown: s | {"kept": [1]},
    "no lists of kept and dropped": lambda s, shown: s | {"dropped": None},
    "no image is kept": lambda s, shown: s | {"kept": []},
    "another selection": lambda s, shown: s | {"selection": "0123456789ab"},
    "its format is thesis_repro answers 1": lambda s, shown: s | {"format": ANSWERS},
}


@pytest.mark.parametrize("words", BAD_CHOICES)
def test_bad_choices_are_one_line_and_nothing_is_kept(offered, words):
    found, folder, home = offered
    said = a_choice(selection=found.id, kept=found.shown[:1])
    good = atomic_json(home / "good.json", said)
    bad = atomic_json(home / "b.json", BAD_CHOICES[words](said | {"person": "Bo"}, found.shown))
    with pytest.raises(BadInput, match=words):
        survey.take_choices([good, bad], folder)
    assert kept(folder) == []


def test_the_majority_keeps(offered):
    found, folder, home = offered
    a, b, c, d, *_ = found.shown
    for person, keep, drop in (
        ("Ada", [a, b, d], [c]),
        ("Bo", [a], [b, c, d]),
        ("Cy", [a, c], [b]),
    ):
        said = a_choice(selection=found.id, person=person, kept=keep, dropped=drop)
        survey.take_choices([atomic_json(home / "x.json", said)], folder)
    assert survey.kept_by_people(folder, found) == [a]  # of d, one keeps and one drops
    with pytest.raises(BadInput, match="ada has answered already"):
        survey.take_choices([atomic_json(home / "x.json", said | {"person": "ada"})], folder)


class Fixed(Augmented):
    "Augmented data whose images are given: four real ones and three of each attribute."

    def made(self, store):
        real = Named("glyphs", 4, 4, 2, attributes=("Red", "Framed")).images()
        x = torch.stack([*pictures(6, side=16).values()])
        y = torch.tensor([[1, 0]] * 3 + [[0, 1]] * 3)
        both = torch.cat([real.x_train, x]), torch.cat([real.y_train, y])
        return dataclasses.replace(real, x_train=both[0], y_train=both[1])


def fixed() -> Augmented:
    "Such data."
    whole = wcgan.added(settings.load("smoke", chapter=3), "WcPGGAN")
    real = Named("glyphs", 4, 4, 2, attributes=("Red", "Framed"))
    return Fixed(real, whole.generator, 3, asked=("Red", "Framed"))


def test_chosen_data_have_the_real_images_and_the_chosen(tmp_path):
    store, shown = Store(settings.load("smoke"), tmp_path), [*pictures(6, side=16)]
    images = pictures(6, side=16)
    found = survey.grouped(torch.stack([*images.values()]), ["Red"] * 3 + ["Framed"] * 3, {})
    survey.offered(tmp_path / "people", found, images)
    said = a_choice(selection=found.id, kept=[shown[5], shown[1]])
    survey.take_choices([atomic_json(tmp_path / "x.json", said)], tmp_path / "people")
    by = selection.ByPeople(found.id, selection.digits_of(said["kept"]), 2, 3)
    data = selection.Selected(fixed(), by)
    x = data.made(store).x_train
    assert len(x) == 6 == data.outline().train
    assert [survey.checksum(i) for i in x[4:]] == [shown[1], shown[5]]
    assert torch.equal(x[:4], fixed().made(store).x_train[:4])
    # another choice since then is another run, and this one says so
    more = a_choice(selection=found.id, person="Bo", kept=[shown[0]])
    survey.take_choices([atomic_json(tmp_path / "x.json", more)], tmp_path / "people")
    with pytest.raises(BadInput, match="no longer those of this run"):
        data.made(store)


def test_the_surest_are_kept_of_each_attribute(tmp_path, monkeypatch):
    store = Store(settings.load("smoke"), tmp_path)
    judge = Run(
        Named("glyphs", attributes=("Red", "Framed")),
        wcgan.Recognise(),
        wcgan.Length(1, 4),
        home="t/j",
    )
    monkeypatch.setattr(store, "ensure", lambda runs: runs)
    monkeypatch.setattr(store, "weights", lambda run, which: None)
    monkeypatch.setattr(
        store,
        "images",
        lambda data: Named("glyphs", 4, 4, 2, attributes=("Red", "Framed")).images(),
    )
    real = store.images(None)
    p = torch.tensor([[0.1, 0.9], [0.8, 0.9], [0.5, 0.9], [0.9, 0.3], [0.9, 0.1], [0.9, 0.2]])
    p = p if real.attributes == ("Red", "Framed") else p.flip(1)
    monkeypatch.setattr(selection, "sure", lambda net, x: p)
    by = selection.ByConfidence(judge, 0.5)
    data = selection.Selected(fixed(), by)
    keep = by.keeps(store, data.data, torch.zeros(6, 3, 16, 16), None)
    assert keep.tolist() == [False, True, True, True, False, True]
    assert by.left(data.data) == 4 and data.outline().train == 4 + 4


def test_a_choice_is_a_part_of_the_run_that_learns_from_it():
    preset = settings.load("smoke", chapter=3)
    whole = wcgan.recogniser(preset, "WcPGGAN")
    by = [
        selection.ByPeople("0" * 12, "1" * 12, 5, 9),
        selection.ByPeople("0" * 12, "2" * 12, 5, 9),
    ]
    by.append(selection.ByConfidence(wcgan.recogniser(preset)))
    runs = [scaled(preset, wcgan.recogniser(preset, "WcPGGAN", by=b)) for b in by]
    assert len({r.key for r in (scaled(preset, whole), *runs)}) == 4
    assert all(from_specification(specification(r)) == r for r in runs)
    assert runs[0].data.data.count == 9 and runs[0].data.outline().train == preset.train_size + 5
    assert runs[2].data.outline().train == scaled(preset, whole).data.outline().train
    judge = scaled(preset, wcgan.recogniser(preset))
    assert judge.key in {r.key for r in runs[2].needs()}
    for r in runs:
        assert r.part == "CelebA" and r.data.stands_in


# Tables, and the command


@pytest.fixture
def smoke(tmp_path, monkeypatch):
    "The preset smoke with a folder of its own."
    monkeypatch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path / "outputs"))
    return settings.load("smoke", chapter=3)


def test_without_answers_the_tables_say_how_to_ask(smoke):
    cells = wcgan.said_by_people(smoke, wcgan.plan_3_1(smoke))
    assert {c.reason for c in cells} == {"no answers: thesis-repro survey --preset smoke"}
    assert [c.row for c in cells] == [r for r in wcgan.PRINTED if r != "ACGAN"]
    plan = wcgan.plan_3_4_ours(smoke)
    rows = {
        row
        for (row, _), p in plan.items()
        if p.reason.startswith("no selection: thesis-repro select")
    }
    assert rows == {wcgan.KEPT}
    none = wcgan.said_by_people(smoke, wcgan.plan_3_1(smoke, ("MNIST",)))
    assert {c.reason for c in none} == {"CelebA was not asked for"}


def test_answers_are_the_values_of_table_3_1(smoke, tmp_path, monkeypatch):
    runs = wcgan.paired_runs(smoke)
    made = {m: {"run": r.key, "weights": m} for m, r in runs.items()}
    monkeypatch.setattr(
        wcgan, "who_made", lambda store, run: next(v for v in made.values() if v["run"] == run.key)
    )
    images = pictures(16)
    sums = iter(images)
    pairs = [Pair(("Red",), p, (next(sums), next(sums))) for p in wcgan.PAIRED for _ in range(4)]
    found = Survey(NAMES, survey.arranged(pairs, 0), made)
    folder = selection.people_folder(Store(smoke))
    survey.written(folder, found, images)
    for person, by in (("Ada", ("WcDCGAN", "cPGGAN")), ("Bo", ("WcDCGAN", "WcPGGAN"))):
        file = atomic_json(tmp_path / "x.json", answers(found, person, for_method(*by)))
        survey.take_answers([file], folder)
    cells = {c.row: c for c in wcgan.said_by_people(smoke, wcgan.plan_3_1(smoke))}
    assert cells["WcDCGAN (Proposed)"].values == (100, 100) and cells["cDCGAN"].values == (0, 0)
    assert sorted(cells["cPGGAN"].values) == [0, 100]
    assert all("stand-in" in c.reason and c.stand_in for c in cells.values())


def test_combinations_are_the_most_frequent_that_ask_for_something():
    y = torch.tensor([[0, 0]] * 9 + [[1, 0]] * 2 + [[1, 1]] * 5 + [[0, 1]] * 3)
    assert wcgan.combinations(y).tolist() == [[1, 1], [0, 1], [1, 0]]
    assert wcgan.combinations(y, 2).tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize(
    "words, said",
    [
        (["survey", "--answers", "none.json"], "none.json: cannot be read"),
        (["select", "--answers", "none.json"], "none.json: cannot be read"),
        (["survey", "--pairs", "1"], "pairs = 1: must be from 2"),
        (["survey", "--repeats", "51", "--pairs", "50"], "repeats = 51: must be from 0 to 50"),
        (["select", "StyleGAN"], "select StyleGAN: must be cPGGAN or WcPGGAN"),
        (["select", "--count", "-3"], "count = -3: must be from 1"),
    ],
)
def test_bad_input_is_one_line_and_code_2(smoke, tmp_path, capsys, words, said):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err
    assert not [f for f in (tmp_path / "outputs").rglob("*") if f.is_file() and f.suffix != ".lock"]


def test_the_command_takes_answers_in_and_tells_the_scores(smoke, tmp_path, capsys):
    found, images = a_survey()
    survey.written(selection.people_folder(Store(smoke)), found, images)
    file = atomic_json(tmp_path / "a.json", answers(found, "Ada", for_method("new", "a")))
    assert main(["survey", "--answers", str(file)]) == 0
    out = capsys.readouterr().out
    assert "1 taken in" in out and "one person: no interval" in out
    assert main(["survey", "--answers", str(file)]) == 2
    assert "Ada has answered already" in capsys.readouterr().err


def test_a_person_without_an_answer_is_none():
    "Two persons, one of whom had said nothing, gave an interval without width."
    with pytest.raises(BadInput, match="answers of 1 person"):
        preferences.score_interval([[1, 0, 1], []])
    pair = preferences.score_interval([[1, 0, 1], [0, 0, 1]])
    assert preferences.score_interval([[1, 0, 1], [], [0, 0, 1]]) == pair


def test_a_choice_with_two_equal_images_is_a_choice(tmp_path, monkeypatch):
    x = torch.randint(0, 256, (4, 1, 4, 4), generator=torch.Generator().manual_seed(0)).byte()
    x[2] = x[0]
    shown = [survey.checksum(image) for image in (x[0], x[1], x[3])]
    monkeypatch.setattr(selection, "people_folder", lambda store: tmp_path)
    monkeypatch.setattr(survey, "shelf", lambda folder, kind, said: tmp_path / said)
    monkeypatch.setattr(survey, "read_selection", lambda file: None)
    monkeypatch.setattr(survey, "kept_by_people", lambda folder, found: shown)
    people = selection.ByPeople("page", selection.digits_of(shown), 3, 4)
    assert people.keeps(None, None, x, None).tolist() == [True, True, False, True]


def test_a_page_is_found_by_what_was_asked_for():
    red = Augmented(Named("glyphs"), asked=("Red",))
    assert selection._asked(red) != selection._asked(dataclasses.replace(red, asked=("Framed",)))
    assert selection._asked(red) != selection._asked(dataclasses.replace(red, draw=5))
