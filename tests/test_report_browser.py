"""The report in headless Chromium: no complaint, no missing file, no request, every permalink.

The report is a small one made here; with $THESIS_REPRO_REPORT it is the one whose front page that
names. Screenshots at the widths of a laptop and a phone are kept where $THESIS_REPRO_SCREENSHOTS
says, to be looked at.
"""

import contextlib
import os
import time
from pathlib import Path

import pytest
from test_pages import filled

from thesis_repro import artefacts, registry

websocket = pytest.importorskip(
    "websocket", reason="websocket-client, which comes with jupyterlab, is not installed"
)

from browser import Browser, found  # noqa: E402

pytestmark = pytest.mark.skipif(
    not found(),
    reason="no Chromium here: on Debian apt-get install chromium, or name one in $CHROMIUM",
)
WIDTHS = {"laptop": 1280, "phone": 390}


@pytest.fixture(scope="module")
def front(tmp_path_factory):
    "The front page of a report."
    if "THESIS_REPRO_REPORT" in os.environ:
        return Path(os.environ["THESIS_REPRO_REPORT"]).resolve()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "load_chapters", lambda chapter="": None)
        patch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        return filled(artefacts.folder("smoke"))


@pytest.fixture(scope="module")
def browser():
    "One browser for all tests of this file."
    with Browser() as b:
        yield b


def opened(browser, page, width=1280):
    "Open a page; it must be silent, and ask for nothing but files of the report."
    browser.open(page.as_uri(), width)
    assert not browser.complaints(), page.name
    foreign = [u for u in browser.requests() if not u.startswith(("data:", page.parent.as_uri()))]
    assert not foreign, f"{page.name} asks for {foreign}"
    lost = browser.run("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
    assert not lost, f"{page.name} lacks {lost}"


@pytest.mark.parametrize("device", WIDTHS)
def test_every_page_is_silent_complete_and_fits(browser, front, device):
    screenshots = os.environ.get("THESIS_REPRO_SCREENSHOTS")
    for page in sorted(front.parent.glob("*.html")):
        opened(browser, page, WIDTHS[device])
        wide = browser.run("document.documentElement.scrollWidth")
        assert wide <= WIDTHS[device], f"{page.name} is {wide} pixels wide"
        if screenshots:
            browser.picture(Path(screenshots) / f"{page.stem}_{WIDTHS[device]}.png")


# Of all permalinks, those whose item is not in the window after a click, or has no height.
LOST = """
(() => {
  const where = link => {
    const newURL = location.href.split("#")[0] + link;  // going there so often is not allowed
    dispatchEvent(new HashChangeEvent("hashchange", {newURL}));
    const item = document.getElementById(decodeURIComponent(link.slice(1)));
    const box = item ? item.getBoundingClientRect() : {height: 0, top: 0};
    const seen = box.height && box.top >= 0 && box.top < innerHeight;
    return seen ? "" : `${link}: ${box.height} high, at ${box.top}`;
  };
  const links = [...document.querySelectorAll("a.here")].map(a => a.getAttribute("href"));
  return links.map(where).filter(Boolean);
})()
"""


def test_every_permalink_shows_its_item(browser, front):
    opened(browser, front)
    assert browser.run("document.querySelectorAll('a.here').length") > 100
    assert browser.run(LOST) == []


def test_a_permalink_from_elsewhere_opens_its_claim(browser, front):
    opened(browser, front, 390)
    last = browser.run("[...document.querySelectorAll('#scorecard tbody tr')].at(-1).id")
    browser.open("about:blank")
    browser.open(f"{front.as_uri()}#{last}", 390)
    row = f"document.getElementById({last!r})"
    assert 0 <= browser.run(f"{row}.getBoundingClientRect().top") < 900
    assert browser.run(f"{row}.querySelector('details').open") and not browser.complaints()


ROWS = "[...document.querySelectorAll('#scorecard tbody tr')].filter(r => !r.hidden)"


def test_the_scorecard_sorts_and_filters(browser, front):
    opened(browser, front)
    total = browser.run("document.querySelectorAll('#scorecard tbody tr').length")
    assert browser.run(f"{ROWS}.length") == min(20, total)
    browser.run("document.querySelector('#scorecard .more button').click()")
    assert browser.run(f"{ROWS}.length") == total
    for direction in (1, -1):
        browser.run("document.querySelector('th[data-key=thesis] button').click()")
        numbers = [n for n in browser.run(f"{ROWS}.map(r => r.dataset.thesis)") if n]
        assert numbers == sorted(numbers, key=float, reverse=direction < 0) and len(numbers) > 10
    assert (
        browser.run("document.querySelector('th[data-key=thesis]').getAttribute('aria-sort')")
        == "descending"
    )
    chip = "document.querySelector('#scorecard button[data-verdict=\"not run\"]').click()"
    browser.run(chip)
    assert set(browser.run(f"{ROWS}.map(r => r.dataset.verdict)")) == {"not run"}
    browser.run(chip)
    type_in = (
        "(e => {{ e.value = {!r}; e.dispatchEvent(new Event('input')); }})"
        "(document.querySelector('[name=search]'))"
    )
    browser.run(type_in.format("svhn best"))
    texts = browser.run(f"{ROWS}.map(r => r.textContent.toLowerCase())")
    assert texts and all("svhn" in text and "best" in text for text in texts)
    browser.run(type_in.format("no claim says this"))
    assert browser.run(f"{ROWS}.length") == 0
    assert browser.run("document.querySelector('.count').textContent") == f"0 of {total} claims"


def test_formulas_are_drawn_by_the_browser_itself(browser, front):
    for page in sorted(front.parent.glob("chapter_*.html")):
        opened(browser, page)
        small = "m => m.getBoundingClientRect().height < 5"
        flat = browser.run(f"[...document.querySelectorAll('math')].filter({small}).length")
        assert not flat, page.name
    opened(browser, front.parent / "chapter_07_aip.html")
    assert browser.run("document.querySelectorAll('math mfrac, math munder, math msub').length") > 0


# The claims that are not seen in full at a phone's width: no text, or a part outside of the window.
UNSEEN = """
(() => {
  const rows = [...document.querySelectorAll("#scorecard tbody tr")].filter(r => !r.hidden);
  const boxes = rows.map(r => r.querySelector("td.text").getBoundingClientRect());
  const seen = b => b.width > 200 && b.height > 10 && b.left >= 0 && b.right <= innerWidth;
  return [rows.length, rows.filter((r, i) => !seen(boxes[i])).map(r => r.id)];
})()
"""


def test_a_phone_shows_each_claim_in_full(browser, front):
    opened(browser, front, WIDTHS["phone"])
    shown, unseen = browser.run(UNSEEN)
    assert shown == 20 and unseen == []


def test_the_first_screen_tells_what_failed_and_the_second_what_was_found(browser, front):
    if "THESIS_REPRO_REPORT" in os.environ:
        pytest.skip("another report may have no failures")
    for device, width in WIDTHS.items():
        opened(browser, front, width)
        top = "Math.round(document.getElementById({!r}).getBoundingClientRect().top)".format
        places = [browser.run(top(name)) for name in ("what-failed", "findings", "claims")]
        assert places == sorted(places) and places[0] < 400, device
        assert places[1] < (1000 if device == "laptop" else 1800), device


ASK = """
(asked => {
  const box = document.querySelector("#jump");
  box.focus();
  box.value = asked;
  box.dispatchEvent(new Event("input"));
  const reached = document.activeElement === box;
  box.form.requestSubmit();
  return [box.form.hidden, reached, box.validationMessage];
})(%r)
"""


def arrived(browser, address) -> bool:
    "Whether the browser is at an address, within some seconds."
    for _ in range(100):
        with contextlib.suppress(RuntimeError):  # between two pages there is nothing to ask
            if browser.run("location.href + document.readyState") == address + "complete":
                return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(
    ("asked", "page", "place"),
    [
        ("7.1", "table_7_1.html", ""),
        ("Table 7.1", "table_7_1.html", ""),
        ("fig. 7.2", "figure_7_2.html", ""),
        ("6.7", "index.html", "#table_6_7"),
        ("eq 6.7", "index.html", "#eq-6.4"),
        ("alg 3", "index.html", "#alg-3"),
        ("chapter 7", "chapter_07_aip.html", ""),
        ("7", "chapter_07_aip.html", ""),
        ("aip", "index.html", "#sys-aip"),
    ],
)
def test_a_number_leads_to_its_table(browser, front, asked, page, place):
    "From any page, with the keyboard alone, and from a file."
    if "THESIS_REPRO_REPORT" in os.environ and not (front.parent / page).exists():
        pytest.skip(f"the report has no {page}")
    for start in ("index.html", "chapter_07_aip.html"):
        opened(browser, front.parent / start)
        assert browser.run(ASK % asked)[:2] == [False, True]
        assert arrived(browser, (front.parent / page).as_uri() + place)
        if place:
            item = f"document.getElementById({place[1:]!r}).getBoundingClientRect()"
            assert 0 <= browser.run(f"{item}.top") < 900


def test_an_unknown_number_is_said_at_the_box(browser, front):
    opened(browser, front)
    for asked in ("99.9", "nothing", ""):
        hidden, _, said = browser.run(ASK % asked)
        assert not hidden and said == "There is no table, figure, equation or chapter of that name."
    assert browser.run("location.href") == front.as_uri()


def test_code_can_be_folded(browser, front):
    opened(browser, front.parent / "chapter_07_aip.html")
    unfolded = "document.querySelectorAll('details.code[open]').length"
    assert browser.run(unfolded) > 0
    browser.run("document.getElementById('fold').click()")
    assert browser.run(unfolded) == 0
    assert browser.run("document.getElementById('fold').textContent") == "Unfold code"


FAULTY = """<img src="none.png"><script src="https://example.org/x.js"></script>
<script>console.error("ouch"); missing();</script>"""


def test_the_browser_notices_what_it_is_there_for(browser, tmp_path):
    (tmp_path / "faulty.html").write_text(FAULTY)
    browser.open((tmp_path / "faulty.html").as_uri())
    said = "\n".join(browser.complaints())
    for word in ("ouch", "missing is not defined", "ERR_FILE_NOT_FOUND", "ERR_NAME_NOT_RESOLVED"):
        assert word in said
    with pytest.raises(AssertionError, match=r"faulty\.html"):
        opened(browser, tmp_path / "faulty.html")
