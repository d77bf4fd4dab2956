"""Presets: typed, validated, refused with one line."""

import dataclasses
import shlex

import pytest

from thesis_repro import settings
from thesis_repro.settings import BadInput


@pytest.fixture
def own(tmp_path, monkeypatch):
    "A function that writes a settings.ini: the shipped one plus some text."
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


def test_blanks_around_a_name_are_no_part_of_it(own):
    own("\n[ mine ]\nepochs = 3\n[ mine : chapter 5 ]\nepochs = 4\n")
    assert "mine" in settings.presets() and settings.load("mine").epochs == 3
    assert settings.load("mine", chapter=5).epochs == 4
    own("\n[mine]\nepochs = 3\n[ mine ]\nepochs = 4\n")
    with pytest.raises(BadInput, match="section 'mine' already exists"):
        settings.load("mine")


@pytest.mark.parametrize(
    "line, said",
    [
        ("epochs = -3", r"epochs = -3: must be a whole number from 0 to 100,000"),
        ("epochs = abc", r"epochs = abc: must be a whole number"),
        ("epochs = 2.5", r"epochs = 2\.5: must be a whole number"),
        ("width = 0", r"width = 0: must be a number from 0\.01 to 16"),
        ("width = nan", r"width = nan: must be a number"),
        ("seeds = 0", r"seeds = 0: must be a whole number from 1"),
        ("precision = fp16", r"precision = fp16: must be one of fp32, tf32, bf16"),
        ("compile = maybe", r"compile = maybe: must be yes or no"),
        ("cifar10 =", r"cifar10 = : must be a text"),
        ("seeds = 2001", r"seeds = 2001: must be a whole number from 1 to 1,000"),
        ("checkpoint_seconds = inf", r"checkpoint_seconds = inf: must be a number"),
        ("epochs = 1e400", r"epochs = 1e400: must be a whole number"),
        ("epochs = " + "9" * 5000, r"epochs = 9+…: must be a whole number"),
        ("launcher = kubernetes", r"launcher = kubernetes: must be one of local, ray, slurm"),
        ("threads = -1", r"threads = -1: must be a whole number from 0"),
        ("epohcs = 3", r"unknown key: epohcs: did you mean epochs\?"),
        ("zzz = 3", r"unknown key: zzz: thesis-repro settings lists all"),
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
    lines = settings.describe().splitlines()
    assert [line.split()[0] for line in lines] == list(settings.KEYS)
    own = {f.name for f in dataclasses.fields(settings.Preset)} - settings.KEYS.keys()
    assert own == {"name", "variant", "given"}
    assert not [line for line in lines if "(a " in line]  # "(text)" is what it may be


def test_values_are_shown_as_the_file_has_them():
    "A key that may be yes or no was shown as True."
    said = settings.shown({"compile": True, "stream": False, "epochs": 1, "width": 1.0})
    assert said == ["compile = yes", "stream = no", "epochs = 1", "width = 1.0"]


def test_what_chapters_say_otherwise_can_be_asked_for(own, monkeypatch):
    own(
        "[small]\nepochs = 9\n[small: chapters 2 5]\nepochs = 3\nstream = yes\n"
        "[small: chapter 5]\nseeds = 2\n[smaller]\n[smaller: chapter 5]\nseeds = 1\n"
    )
    both = {"small: chapters 2 5": {"epochs": 3, "stream": True}, "small: chapter 5": {"seeds": 2}}
    assert settings.in_chapters("small") == both
    left = {"small: chapters 2 5": {"stream": True}}
    monkeypatch.setenv(settings.OUTSIDE, "seeds=4")  # and what is given stands above the sections
    assert settings.in_chapters("small", {"epochs": 1}) == left
    own("[small]\n[small: chapter 5]\nepochs = many\n")
    with pytest.raises(BadInput, match=r"\[small: chapter 5\]: epochs = many: must be"):
        settings.in_chapters("small")


def test_a_chapter_may_have_its_own_section(own):
    own(
        "[small]\nepochs = 9\nseeds = 4\n"
        "[small: chapters 2 5]\nepochs = 3\nbce = mean\n"
        "[small: chapter 5]\nwidth = 0.5\n"
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


def test_a_companions_section_has_its_name(own, tmp_path, monkeypatch):
    own("[small]\nepochs = 9\n[small: chapters 5 advprop]\nepochs = 3\n")
    monkeypatch.setenv("THESIS_REPRO_ROOT", str(tmp_path))  # where no notebook is
    assert [settings.load("small", chapter=c).epochs for c in (None, 5, "advprop")] == [9, 3, 3]


def test_one_command_fills_one_folder_whatever_its_chapters_say(own):
    own("[small]\nseeds = 4\n[small: chapter 5]\nseeds = 2\n[small: chapter 6]\nepochs = 3\n")
    for seeds in (2, 4, 5):
        found = [settings.load("small", chapter=c, seeds=seeds) for c in (None, 5, 6)]
        assert {p.variant for p in found} == {f"with-seeds-{seeds}"}
        assert {p.given for p in found} == {(("seeds", seeds),)}
    assert settings.load("small", chapter=5).variant == settings.load("small", jobs=1).variant == ""
    width = settings.load("small").width
    assert settings.load("small", chapter=5, width=width).variant == ""


def test_what_means_a_preset_can_be_typed():
    p = settings.load("smoke", slurm="time=240 partition=gpu", epochs=1)
    words = shlex.split(settings.asked_for(p))
    slurm = ["--set", "slurm=time=240 partition=gpu"]
    assert words == ["--preset", "smoke", "--set", "epochs=1", *slurm]


def test_the_folder_of_a_variant_has_a_name_that_can_be_one():
    long = {k: f"npz:/{'folder/' * 12}{k}.npz@0123456789ab" for k in ("cifar10", "svhn", "mnist")}
    one, other = (settings.load("smoke", **long, epochs=n).variant for n in (1, 2))
    assert max(len(one), len(other)) <= 100 and one != other


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


# Names


@pytest.mark.parametrize(
    "name", ["../../x", "/abs", "..", ".hidden", "a/../b", "a/b/c", "a/", "two words", "-x", "a\\b"]
)
def test_a_preset_whose_name_could_not_be_a_folder_is_refused(own, name):
    own(f"\n[{name}]\nepochs = 3\n")
    for call in (lambda: settings.load(name), lambda: settings.load("smoke"), settings.presets):
        with pytest.raises(BadInput, match="a preset's name has letters, digits") as e:
            call()
        assert f"[{name}]" in str(e.value) and "\n" not in str(e.value)


def test_a_reference_has_a_folder_of_its_own_in_the_name(own):
    own("\n[reference/mine]\nepochs = 3\n")
    assert settings.load("reference/mine").epochs == 3


def test_the_default_section_is_no_preset():
    assert "DEFAULT" not in settings.presets()
    with pytest.raises(BadInput, match="unknown preset: DEFAULT"):
        settings.load("DEFAULT")


def test_what_a_command_line_changes_has_a_folder_of_its_own():
    assert settings.load("smoke").variant == ""
    assert settings.load("smoke", precision=settings.load("smoke").precision).variant == ""
    assert settings.load("smoke", jobs=7, device="cpu", threads=3).variant == ""
    assert settings.load("smoke", seeds=9, epochs=1).variant == "with-epochs-1-seeds-9"
    nasty = settings.load("smoke", cifar10="npz:/etc/../x y@0123456789ab").variant
    assert "/" not in nasty and " " not in nasty and nasty.startswith("with-cifar10-npz-")


def test_all_of_what_can_be_left_out_is_zero_and_none_of_it_is_a_word(own):
    "At the thesis's scale AutoAttack attacks all test images; `none` survives every way of saying."
    assert settings.load("thesis").autoattack_size == 0
    own("\n[mine]\nautoattack_size = none\n")
    given = settings.load("thesis", autoattack_size="none")
    for p in (settings.load("mine"), given, settings.of_chapter(given, 6)):
        assert p.autoattack_size == settings.NONE == "none"
    assert settings.asked_for(given).endswith("--set autoattack_size=none")
    assert given.variant == "with-autoattack_size-none"
    assert "autoattack_size = none" in settings.shown({"autoattack_size": given.autoattack_size})
    (line,) = (s for s in settings.describe().splitlines() if s.startswith("autoattack_size"))
    assert line.endswith("0: all (whole number from 0 to 10,000,000, or none: it is left out)")
    with pytest.raises(BadInput, match="autoattack_size = few: must be .* or none: it is left out"):
        settings.load("thesis", autoattack_size="few")
    with pytest.raises(BadInput, match="attack_size = none: must be a whole number from 0 [^n]*$"):
        settings.load("thesis", attack_size="none")


def test_differences_name_what_differs():
    fast, thesis = settings.load("fast"), settings.load("thesis")
    assert settings.differences(thesis, thesis) == {}
    assert settings.differences(fast, thesis)["width"] == (0.5, 1.0)


@pytest.mark.parametrize(
    "text, said", [(" , ", "names no data set"), ("imagenet", "imagenet: unknown")]
)
def test_parts_that_are_none_are_refused(text, said):
    with pytest.raises(BadInput, match=said):
        settings.parts(text)


def test_parts_by_either_name_in_the_thesis_order():
    assert (
        settings.parts("svhn, CIFAR-10") == settings.parts("SVHN,cifar10") == ("CIFAR-10", "SVHN")
    )
    assert settings.parts("") == tuple(settings.PARTS)


def test_keys_in_the_environment_are_read_and_refused_in_one_line(monkeypatch):
    monkeypatch.setenv(settings.OUTSIDE, "threads=1 cifar10='npz:my images.npz'")
    said = settings.load("smoke")
    assert (said.threads, said.cifar10) == (1, "npz:my images.npz")
    monkeypatch.setenv(settings.OUTSIDE, "cifar10='npz:my images.npz")
    with pytest.raises(BadInput, match="THESIS_REPRO_SET: cifar10='npz.*: No closing quotation"):
        settings.load("smoke")
