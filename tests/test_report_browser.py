"""The report in headless Chromium: no complaint, no missing file, no request that leaves the machine, every permalink.

The report is a small one made here; with $THESIS_REPRO_REPORT it is the one whose front page that names. Screenshots at
the widths of a laptop and a phone are kept where $THESIS_REPRO_SCREENSHOTS says, to be looked at.
"""

import os
from pathlib import Path

import pytest
from test_pages import filled

from thesis_repro import report

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
        patch.setenv("THESIS_REPRO_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        return filled(report.folder("smoke"))


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


# Of all permalinks, those whose item is not within the window after a click, or has no height, with the reason.
LOST = """
(() => {
  const where = link => {
    const newURL = location.href.split("#")[0] + link;  // going there hundreds of times a second is not allowed
    dispatchEvent(new HashChangeEvent("hashchange", {newURL}));
    const item = document.getElementById(decodeURIComponent(link.slice(1)));
    const box = item ? item.getBoundingClientRect() : {height: 0, top: 0};
    return box.height && box.top >= 0 && box.top < innerHeight ? "" : `${link}: ${box.height} high, at ${box.top}`;
  };
  return [...document.querySelectorAll("a.here")].map(a => where(a.getAttribute("href"))).filter(Boolean);
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
    browser.run(
        "document.querySelector('#scorecard button[data-verdict=\"not measured\"]').click()"
    )
    assert set(browser.run(f"{ROWS}.map(r => r.dataset.verdict)")) == {"not measured"}
    type_in = "(e => {{ e.value = {!r}; e.dispatchEvent(new Event('input')); }})(document.querySelector('[name=search]'))"
    browser.run(type_in.format("svhn best"))
    texts = browser.run(f"{ROWS}.map(r => r.textContent.toLowerCase())")
    assert texts and all("svhn" in text and "best" in text for text in texts)
    browser.run(type_in.format("no claim says this"))
    assert browser.run(f"{ROWS}.length") == 0
    assert browser.run("document.querySelector('.count').textContent") == f"0 of {total} claims"


def test_formulas_are_drawn_by_the_browser_itself(browser, front):
    for page in sorted(front.parent.glob("chapter_*.html")):
        opened(browser, page)
        flat = browser.run(
            "[...document.querySelectorAll('math')].filter(m => m.getBoundingClientRect().height < 5).length"
        )
        assert not flat, page.name
    opened(browser, front.parent / "chapter_07_aip.html")
    assert browser.run("document.querySelectorAll('math mfrac, math munder, math msub').length") > 0


FAULTY = """<img src="none.png"><script src="https://example.org/x.js"></script><script>console.error("ouch"); missing();</script>"""


def test_the_browser_notices_what_it_is_there_for(browser, tmp_path):
    (tmp_path / "faulty.html").write_text(FAULTY)
    browser.open((tmp_path / "faulty.html").as_uri())
    said = "\n".join(browser.complaints())
    for word in ("ouch", "missing is not defined", "ERR_FILE_NOT_FOUND", "ERR_NAME_NOT_RESOLVED"):
        assert word in said
    with pytest.raises(AssertionError, match=r"faulty\.html"):
        opened(browser, tmp_path / "faulty.html")
