"""Presets: typed, validated, refused with one line."""

import dataclasses

import pytest

from thesis_repro import settings
from thesis_repro.settings import BadInput


@pytest.fixture
def own(tmp_path, monkeypatch):
    "Write a settings.ini of one's own: the shipped one plus some text."
    shipped = settings.settings_file().read_text(encoding="utf-8")

    def write(text, base=shipped):
        file = tmp_path / "settings.ini"
        file.write_text(base + text, encoding="utf-8")
        monkeypatch.setenv("THESIS_REPRO_SETTINGS", str(file))

    return write


def test_every_shipped_preset_loads():
    assert {"thesis", "fast", "smoke"} <= set(settings.presets())
    for name in settings.presets():
        assert settings.load(name).name == name


def test_the_thesis_preset_is_the_thesis():
    p = settings.load("thesis")
    assert (p.cifar10, p.svhn, p.width, p.seeds, p.epochs, p.train_size) == (
        "cifar10",
        "svhn",
        1.0,
        5,
        0,
        0,
    )


def test_a_section_of_ones_own_is_a_preset(own):
    own("\n[mine]\nepochs = 3\nwidth = 0.25  # a comment\ncompile = yes\n")
    p = settings.load("mine")
    assert (p.epochs, p.width, p.compile, p.seeds) == (3, 0.25, True, 5)


@pytest.mark.parametrize(
    "line, said",
    [
        ("epochs = -3", r"epochs = -3: must be a whole number from 0 to 100,000"),
        ("epochs = abc", r"epochs = abc: must be a whole number"),
        ("epochs = 2.5", r"epochs = 2\.5: must be a whole number"),
        ("width = 0", r"width = 0: must be a number from 0\.01"),
        ("width = nan", r"width = nan: must be a number"),
        ("seeds = 0", r"seeds = 0: must be a whole number from 1"),
        ("precision = fp16", r"precision = fp16: must be one of auto, fp32, bf16"),
        ("compile = maybe", r"compile = maybe: must be yes or no"),
        ("cifar10 =", r"cifar10 = : must be a text"),
        ("epohcs = 3", r"unknown key: epohcs: known are "),
    ],
)
def test_one_line_names_the_key_the_value_and_what_is_allowed(own, line, said):
    own(f"\n[mine]\n{line}\n")
    with pytest.raises(BadInput, match=said) as e:
        settings.load("mine")
    assert "settings.ini [mine]" in str(e.value) and "\n" not in str(e.value)


def test_unknown_preset_lists_what_there_is():
    with pytest.raises(BadInput, match="unknown preset: huge: .*smoke"):
        settings.load("huge")


def test_an_override_is_checked_like_a_key():
    assert settings.load("smoke", seeds="3").seeds == 3
    assert settings.load("smoke", seeds=None) == settings.load("smoke")
    with pytest.raises(BadInput, match="parameter: epochs = -1"):
        settings.load("smoke", epochs=-1)
    with pytest.raises(BadInput, match="unknown key: colour"):
        settings.load("smoke", colour="red")


@pytest.mark.parametrize("base", ["no section\n", "[a]\n[a]\n", "[mine\n"])
def test_a_broken_file_is_bad_input(own, base):
    own("", base)
    with pytest.raises(BadInput, match="cannot be read"):
        settings.load("mine")


def test_a_missing_file_is_bad_input(monkeypatch, tmp_path):
    monkeypatch.setenv("THESIS_REPRO_SETTINGS", str(tmp_path / "none.ini"))
    with pytest.raises(BadInput, match="none.ini: cannot be read"):
        settings.load()


def test_a_missing_key_is_named(own):
    own("", "[mine]\nepochs = 3\n")
    with pytest.raises(BadInput, match="no value for .*width"):
        settings.load("mine")


@pytest.mark.parametrize("device", ["cuda:97", "tpu", "gpu", "meta"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(BadInput, match="device"):
        settings.device(settings.load("smoke", device=device))


def test_every_key_is_described():
    text = settings.describe()
    assert all(f.name in text for f in dataclasses.fields(settings.Preset) if f.name != "name")


def test_a_chapter_may_have_its_own_section(own):
    own(
        "[small]\nepochs = 9\nseeds = 4\n[small: chapters 2 5]\nepochs = 3\nbce = mean\n[small: chapter 5]\nwidth = 0.5\n"
    )
    assert (settings.load("small").epochs, settings.load("small", chapter=7).epochs) == (9, 9)
    assert (settings.load("small", chapter=2).epochs, settings.load("small", chapter=5).width) == (
        3,
        0.5,
    )
    assert (
        settings.load("small", chapter=5).seeds == 4
        and settings.load("small", chapter=5, epochs=1).epochs == 1
    )
    assert settings.load("small", chapter=5).name == "small" and all(
        ":" not in p for p in settings.presets()
    )


@pytest.mark.parametrize("header", ["small: 5", "small: chapters", "small: chapter five"])
def test_a_chapters_section_has_one_form(own, header):
    own(f"[small]\nepochs = 9\n[{header}]\nepochs = 3\n")
    with pytest.raises(
        BadInput, match=r"must be a preset's name, or such as \[smoke: chapters 2 5 6\]"
    ):
        settings.load("small")
    with pytest.raises(BadInput, match="unknown preset"):
        settings.load("small: chapters 2 5")


def test_a_chapters_section_cannot_have_an_unknown_key(own):
    own("[small]\nepochs = 9\n[small: chapter 5]\nepohcs = 3\n")
    with pytest.raises(BadInput, match="unknown key: epohcs"):
        settings.load("small", chapter=5)
