"""The pages that ask people, in headless Chromium: keyboard, touch, what a reload keeps, the file.

Screenshots are kept where $THESIS_REPRO_SCREENSHOTS says, to be looked at.
"""

import json
import os
import tempfile
import time
from pathlib import Path

import pytest
import torch
from test_survey import a_survey, pictures

from thesis_repro import survey

websocket = pytest.importorskip(
    "websocket", reason="websocket-client, which comes with jupyterlab, is not installed"
)

from browser import Browser, found  # noqa: E402

pytestmark = pytest.mark.skipif(
    not found(),
    reason="no Chromium here: on Debian apt-get install chromium, or name one in $CHROMIUM",
)
WIDTHS = {"laptop": (1280, 800), "phone": (360, 640)}


@pytest.fixture(scope="module")
def browser():
    "One browser for all tests of this file."
    with Browser() as b:
        yield b


@pytest.fixture
def asked(tmp_path):
    "A survey, and its page; another survey in each test."
    made, images = a_survey(
        3, 2, made={m: {"run": str(tmp_path)} for m in ("old", "new", "a", "b")}
    )
    return made, survey.written(tmp_path / "people", made, images)


@pytest.fixture
def offered(tmp_path):
    "A selection of two attributes with six images each, and its page."
    images = pictures(12, side=16)
    names = ["Blond Hair"] * 6 + ["Eyeglasses"] * 6
    made = survey.grouped(torch.stack([*images.values()]), names, {"run": str(tmp_path)})
    return made, survey.offered(tmp_path / "people", made, images)


def opened(browser, page, person="Ada", device="laptop"):
    "Open a page and say who answers; the page is silent and asks for nothing else."
    time.sleep(0.4)  # what the page before it kept comes by another process, a moment later
    browser.open(page.as_uri(), *WIDTHS[device])
    if person:
        browser.run("document.getElementById('person').focus()")
        browser.call("Input.insertText", text=person)
        key(browser, "Enter")
    silent(browser, page)


def silent(browser, page):
    "No complaint, no request for anything but the page itself."
    assert not browser.complaints()
    foreign = [u for u in browser.requests() if not u.startswith(("data:", "blob:", page.as_uri()))]
    assert not foreign


CODES = {"Enter": 13, "Backspace": 8, "Tab": 9, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40}


def key(browser, name: str):
    "Press a key."
    text = "\r" if name == "Enter" else name if len(name) == 1 else ""
    how = {"key": name, "windowsVirtualKeyCode": CODES.get(name, ord(name[0].upper()))}
    browser.call("Input.dispatchKeyEvent", type="keyDown", text=text, **how)
    browser.call("Input.dispatchKeyEvent", type="keyUp", **how)


MIDDLE = """
(e => {
  e.scrollIntoView({block: "center"});
  const middle = () => {
    const b = e.getBoundingClientRect();
    return [b.left + b.width / 2, b.top + b.height / 2];
  };
  const drawn = then => requestAnimationFrame(() => requestAnimationFrame(then));
  return new Promise(done => drawn(() => done(middle())));
})(document.querySelector(%s))
"""
SIZES = """
[...document.querySelectorAll("button")].filter(b => b.offsetParent)
  .map(b => [b.offsetWidth, b.offsetHeight])
"""


def tap(browser, what: str):
    "Touch the middle of the element that a selector finds."
    browser.call("Emulation.setTouchEmulationEnabled", enabled=True)
    box = browser.run(MIDDLE % repr(what))
    point = [{"x": box[0], "y": box[1]}]
    browser.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=point)
    browser.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    browser.call("Emulation.setTouchEmulationEnabled", enabled=False)


def count(browser) -> str:
    "The progress as the page says it."
    return browser.run("document.getElementById('count').textContent")


def saved(browser, folder: Path, button: str = "#tools .download") -> Path:
    "Click on a button that saves the file; the file."
    folder = Path(tempfile.mkdtemp(dir=folder))
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    browser.run(f"document.querySelector({button!r}).click()")
    for _ in range(200):
        if new := [*folder.glob("*.json")]:
            return new[0]
        time.sleep(0.05)
    raise AssertionError("no file was saved")


def choices(file) -> list[str]:
    "The choices in a file, in their order."
    return [a["choice"] for a in json.loads(file.read_text())["answers"]]


def pictured(browser, name: str):
    "A screenshot, if they are asked for."
    if folder := os.environ.get("THESIS_REPRO_SCREENSHOTS"):
        time.sleep(0.3)
        browser.picture(Path(folder) / f"{name}.png")


# The survey


def test_keys_answer_undo_and_end_in_a_file_that_is_let_in(browser, asked, tmp_path):
    made, page = asked
    opened(browser, page)
    assert count(browser) == "0 of 8"
    for name in ("ArrowLeft", "ArrowRight", "ArrowLeft", "Backspace", "ArrowDown"):
        key(browser, name)
    assert count(browser) == "3 of 8"
    file = saved(browser, tmp_path)
    assert choices(file) == ["left", "right", "neither"] and "Ada" in file.name
    for _ in range(5):
        key(browser, "ArrowRight")
    browser.until("!document.getElementById('end').hidden")
    assert browser.run("document.activeElement.id") == "thanks"
    key(browser, "ArrowRight")  # there is nothing left to answer
    file = saved(browser, tmp_path, "#end .download")
    said = survey.read_answers(file, made)
    assert said["person"] == "Ada" and [a["pair"] for a in said["answers"]] == [
        p.id for p in made.pairs
    ]
    assert all(0 <= a["seconds"] < 60 for a in said["answers"])
    survey.take_answers([file], page.parent)
    silent(browser, page)


def test_the_pictures_are_those_of_the_pair(browser, asked):
    made, page = asked
    _, images = a_survey(3, 2)
    opened(browser, page)
    for p in made.pairs[:3]:
        shown = browser.run("[...document.querySelectorAll('.pair img')].map(i => i.src)")
        assert shown == [survey.png(images[s]) for s in p.images]
        chips = browser.run("[...document.querySelectorAll('#asked .yes')].map(c => c.textContent)")
        assert chips == list(p.asked)
        key(browser, "ArrowLeft")


def test_touch_answers_on_a_phone(browser, asked, tmp_path):
    _, page = asked
    opened(browser, page, device="phone")
    for what in ("#left", "#right", "#neither", "#left", "#undo"):
        tap(browser, what)
    assert count(browser) == "3 of 8"
    assert choices(saved(browser, tmp_path)) == ["left", "right", "neither"]


def test_nothing_is_lost_when_the_tab_closes_and_each_name_has_its_own(browser, asked, tmp_path):
    _, page = asked
    opened(browser, page)
    for name in ("ArrowLeft", "ArrowLeft", "ArrowRight"):
        key(browser, name)
    browser.open("about:blank")
    opened(browser, page, person="")  # nobody is asked again
    assert count(browser) == "3 of 8"
    assert choices(saved(browser, tmp_path)) == ["left", "left", "right"]
    browser.run("document.querySelector('.another').click()")
    assert browser.run("document.activeElement.id") == "person"
    opened(browser, page, person="Bo")
    assert count(browser) == "0 of 8"
    key(browser, "ArrowDown")
    browser.run("document.querySelector('.another').click()")
    opened(browser, page, person="Ada")
    assert count(browser) == "3 of 8"


def test_a_browser_that_keeps_nothing_says_so_and_goes_on(browser, asked, tmp_path):
    _, page = asked
    script = "Storage.prototype.setItem = () => { throw new Error('full'); };"
    made = browser.call("Page.addScriptToEvaluateOnNewDocument", source=script)
    try:
        opened(browser, page)
        assert not browser.run("document.getElementById('unkept').hidden")
        key(browser, "ArrowLeft")
        assert choices(saved(browser, tmp_path)) == ["left"]
    finally:
        browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=made["identifier"])


def test_what_is_kept_but_damaged_begins_anew(browser, asked):
    made, page = asked
    browser.open(page.as_uri())
    for wrong in ("{", "5", "null", '{"people": 0}'):
        place = f"thesis_repro:survey:{made.id}"
        browser.run(f"localStorage.setItem({place!r}, {wrong!r})")
        opened(browser, page)
        assert count(browser) == "0 of 8"
        browser.run("localStorage.clear()")


def test_a_key_that_is_held_is_one_answer_and_typing_is_none(browser, asked):
    _, page = asked
    browser.open(page.as_uri())
    browser.run("document.getElementById('person').focus()")
    browser.call("Input.insertText", text="Ada")
    key(browser, "Backspace")
    key(browser, "ArrowLeft")
    assert browser.run("document.getElementById('person').value") == "Ad"
    key(browser, "Enter")
    how = {"key": "ArrowLeft", "windowsVirtualKeyCode": 37}
    for i in range(4):
        browser.call("Input.dispatchKeyEvent", type="keyDown", autoRepeat=i > 0, **how)
    assert count(browser) == "1 of 8"


# The selection


GROUPS = "[...document.querySelectorAll('.group header small')].map(s => s.textContent)"


def test_keys_keep_and_drop(browser, offered, tmp_path):
    made, page = offered
    opened(browser, page)
    for name in ("k", "d", "k", "ArrowRight", "k", "Backspace", "k"):
        key(browser, name)
    assert browser.run(GROUPS) == [
        "3 kept, 1 dropped, 2 left",
        "0 kept, 0 dropped, 6 left",
    ]
    assert count(browser) == "4 of 12"
    said = survey.read_choice(file := saved(browser, tmp_path), made)
    first = made.groups["Blond Hair"]
    assert sorted(said["kept"]) == sorted([first[0], first[2], first[4]])
    assert said["dropped"] == [first[1]]
    survey.take_choices([file], page.parent)
    silent(browser, page)


def test_touch_keeps_then_drops_and_the_rest_is_one_step(browser, offered, tmp_path):
    made, page = offered
    opened(browser, page, device="phone")
    for what in (".grid button:nth-child(2)", ".grid button:nth-child(3)"):
        tap(browser, what)
    tap(browser, ".grid button:nth-child(3)")
    pressed = (
        "[...document.querySelectorAll('.grid button')].map(b => b.getAttribute('aria-pressed'))"
    )
    assert browser.run(pressed)[:3] == ["false", "true", "false"]
    tap(browser, ".group header button:nth-of-type(2)")
    assert browser.run(GROUPS)[0] == "1 kept, 5 dropped, 0 left"
    tap(browser, "#undo")
    assert browser.run(GROUPS)[0] == "1 kept, 1 dropped, 4 left"
    browser.open("about:blank")
    opened(browser, page, person="", device="phone")
    assert browser.run(GROUPS)[0] == "1 kept, 1 dropped, 4 left"
    said = json.loads(saved(browser, tmp_path).read_text())
    assert said["kept"] == [made.groups["Blond Hair"][1]]


# How they look


def test_pages_fit_and_what_is_touched_is_large_enough(browser, asked, offered):
    for name, (_, page), shown in (("survey", asked, "asking"), ("select", offered, "choosing")):
        for device, (width, height) in WIDTHS.items():
            browser.open(page.as_uri(), width, height)
            browser.run("localStorage.clear()")
            for state in ("start", shown):
                opened(browser, page, person="Ada" if state == shown else "", device=device)
                assert not browser.run(f"document.getElementById({state!r}).hidden")
                assert browser.run("document.documentElement.scrollWidth") <= width
                pictured(browser, f"{name}_{state}_{width}")
            small = [size for size in browser.run(SIZES) if min(size) < 40]
            assert not small, (name, device)
            if name == "survey":
                low = "document.getElementById('neither').getBoundingClientRect().bottom"
                assert browser.run(low) <= height  # everything at once, without scrolling


def test_everything_has_a_name(browser, asked, offered):
    for _, page in (asked, offered):
        opened(browser, page)
        names = browser.call("Accessibility.getFullAXTree")["nodes"]
        parts = {"button", "textbox", "progressbar", "image"}
        shown = [n for n in names if n.get("role", {}).get("value") in parts and not n["ignored"]]
        assert len(shown) > 4
        assert all(n.get("name", {}).get("value") for n in shown)
