"""The report's page in a real Chromium: it draws, asks for nothing, follows the colour scheme and fits a phone."""

from __future__ import annotations

import itertools

import pytest
from playwright.sync_api import Page, expect

from emoreg.report import write_report
from tests.helpers.browser import needs_chromium, opened
from tests.helpers.written import made_up_config, write_study

pytestmark = [needs_chromium, pytest.mark.slow]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of two studies, one of them confirmed: everything that a page can have."""
    root = tmp_path_factory.mktemp("runs")
    places = [str(write_study(root)), str(write_study(root, made_up_config(name="other", num_trials=15), num_seeds=0))]
    return write_report(places, output=root / "out", price_per_hour=2.5, images=False).as_uri()


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("runs")
    return write_report([write_study(root)], output=root, images=False).as_uri()


def wait_until_drawn(page: Page) -> int:
    page.wait_for_selector("html[data-drawn]", state="attached")  # no function: the page forbids eval
    return int(page.evaluate("document.documentElement.dataset.drawn"))


def test_it_draws_every_figure_and_asks_for_nothing(url: str) -> None:
    with opened(url) as found:
        drawn = wait_until_drawn(found.page)
        assert drawn == found.page.locator("figure").count() >= 10
        assert found.page.locator("figure").evaluate_all("all => all.every(one => one.querySelector('svg.main-svg'))")
        assert found.page.locator("#comparison").is_visible()
        assert found.page.locator("table").count() > 10
        assert found.errors == []
        assert found.requests == [url]


def test_headings_tables_and_links_have_the_structure_that_a_screen_reader_needs(single: str) -> None:
    with opened(single) as found:
        wait_until_drawn(found.page)
        levels = found.page.locator("h1, h2, h3, h4").evaluate_all("all => all.map(one => Number(one.tagName[1]))")
        assert levels.count(1) == 1
        assert all(later <= former + 1 for former, later in itertools.pairwise(levels))
        assert found.page.locator("table:not(:has(caption))").count() == 0
        assert found.page.locator("table th:not([scope])").count() == 0
        targets = found.page.locator("nav a").evaluate_all("all => all.map(one => one.hash.slice(1))")
        assert all(found.page.locator(f"[id='{target}']").count() == 1 for target in targets)
        ids = found.page.locator("[id]").evaluate_all("all => all.map(one => one.id)")
        own = [name for name in ids if not name.startswith(("clip", "g", "legend", "topdefs", "defs", "modebar"))]
        assert len(own) == len(set(own))


def test_dark_differs_from_light_and_the_figures_follow(single: str) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('figure .xtick text')).fill"
    with opened(single) as found:
        wait_until_drawn(found.page)
        paper, text = found.page.evaluate(background), found.page.evaluate(ink)
        found.page.emulate_media(color_scheme="dark")
        expect(found.page.locator("figure .xtick text").first).not_to_have_css("fill", text)
        assert found.page.evaluate(background) != paper
        changed = found.page.evaluate(ink)
    with opened(single, dark=True) as found:
        wait_until_drawn(found.page)
        assert found.page.evaluate(ink) == changed
        assert found.errors == []


_NOTHING_IS_WIDER = """width => document.documentElement.scrollWidth === width
    && [...document.querySelectorAll("figure .main-svg")].every(one => one.getBoundingClientRect().right <= width)"""


def test_it_never_scrolls_sideways(url: str) -> None:
    with opened(url, width=1280) as found:
        for width in (1280, 768, 390):
            found.page.set_viewport_size({"width": width, "height": 900})
            wait_until_drawn(found.page)
            found.page.wait_for_function(_NOTHING_IS_WIDER, arg=width)
        assert found.errors == []


def test_every_text_can_be_read_on_its_background(single: str) -> None:
    """WCAG 2.1 AA: 4.5 to 1, for all text of the page outside of the figures."""
    for dark in (False, True):
        with opened(single, dark=dark) as found:
            wait_until_drawn(found.page)
            assert found.page.evaluate(_LEAST_CONTRAST) >= 4.5


def test_on_paper_it_is_light_and_nothing_is_cut(single: str) -> None:
    with opened(single, dark=True) as found:
        wait_until_drawn(found.page)
        found.page.emulate_media(media="print", color_scheme="dark")
        found.page.set_viewport_size({"width": 680, "height": 1000})
        found.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert found.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert found.page.locator("nav").first.is_hidden()
        assert found.page.locator("figure .main-svg").evaluate_all("all => all.every(one => one.clientWidth <= 680)")
        cut = "all => all.filter(one => one.getBoundingClientRect().right > 681).map(one => one.caption.textContent)"
        assert found.page.locator("table").evaluate_all(cut) == []
        expect(found.page.locator("figure .xtick text").first).to_have_css("fill", "rgb(0, 0, 0)")


_LEAST_CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d");
  const channels = (color) => { canvas.fillStyle = "#000"; canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const luminance = (color) => { const [r, g, b] = channels(color).slice(0, 3).map((value) => {
    const share = value / 255; return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const background = (one) => { for (; one; one = one.parentElement) {
    const color = getComputedStyle(one).backgroundColor; if (color !== "rgba(0, 0, 0, 0)") return color; } return "#fff"; };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let least = 21;
  while (texts.nextNode()) {
    const one = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || one.closest("script, style, noscript, .plot") || !one.checkVisibility()) continue;
    const [a, b] = [luminance(getComputedStyle(one).color), luminance(background(one))];
    least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return least;
}"""
