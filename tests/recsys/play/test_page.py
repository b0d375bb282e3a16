"""The page in a real browser: by keyboard, at a phone's width, in light and dark, with hostile titles."""

from __future__ import annotations

import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

from cramer_peft.recsys.play.app import make_app
from cramer_peft.recsys.recommender import RequestRecommender

SCRIPT = "<script>window.harmed = 1</script>"
REQUEST = "something like Toy Story, but no horror zorblat"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# The texts whose contrast with what is behind them is below 4.5 (WCAG AA).
PALE = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((value) => value / 255)
    .map((value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (node) => {
    for (let one = node; one; one = one.parentElement) {
      const colour = parts(getComputedStyle(one).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
  };
  return [...document.querySelectorAll("main *, header *")].filter((node) => node.offsetParent && !node.disabled
    && [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim())).filter((node) => {
      const [one, other] = [light(parts(getComputedStyle(node).color)), light(behind(node))];
      return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05) < 4.5;
  }).map((node) => node.outerHTML.slice(0, 80));
}"""


@pytest.fixture(scope="module")
def address(recommender: RequestRecommender) -> Iterator[str]:
    """The page of the recommender, served from a thread."""
    app = make_app(recommender, "films", examples=["comedy, but no horror"])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, http="h11", ws="none", log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, NAMES)), playwright.chromium.executable_path)
        if not Path(found).exists():
            pytest.skip("no Chromium found: apt-get install chromium, or playwright install chromium")
        chromium = playwright.chromium.launch(executable_path=found)
        yield chromium
        chromium.close()


Opened = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, address: str) -> Iterator[Opened]:
    """Opens the page; at the end, nothing may have come from elsewhere, run from a title, or been complained about."""
    contexts, asked, complaints = [], [], []

    def open_page(fragment: str = "", width: int = 1280, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address + fragment)
        expect(page.locator("#about")).to_contain_text("titles")
        return page

    yield open_page
    for context in contexts:
        assert not any(page.evaluate("'harmed' in window") for page in context.pages)
        context.close()
    assert [url for url in asked if not url.startswith(address)] == []
    assert [text for text in complaints if "422" not in text and "ERR_FAILED" not in text] == []


def lists(page: Page) -> list[list[str]]:
    """The titles of each list that is shown."""
    columns = page.locator("#results .column").all()
    return [[re.sub(r" \d{4}$", "", text) for text in one.locator("ol .title").all_inner_texts()] for one in columns]


def ask(page: Page, text: str, place: int = 0) -> None:
    field = page.locator("#requests input").nth(place)
    field.fill(text)
    field.press("Enter")
    expect(page.locator("#results h2").nth(place + 1)).to_contain_text(text)
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")


def test_before_and_after_with_what_was_heard(opened: Opened, recommender: RequestRecommender) -> None:
    page = opened("#h=i3&h=i7")
    ask(page, REQUEST)
    expected, titles = recommender.recommend([3, 7], REQUEST), recommender.catalogue.titles
    assert lists(page) == [[titles[item] for item in own] for own in (expected.frozen_items, expected.items)]
    came, went = len(expected.came), len(expected.went)
    assert came
    assert page.locator(".after .tag.new").count() == came
    assert page.locator(".before .tag.out").count() == went
    expect(page.get_by_role("status")).to_contain_text(f"{came} titles came, {went} went.")
    heard = page.locator(".heard").nth(1)
    expect(heard).to_contain_text("wanted: “toy story” → like Toy Story (1982)")
    expect(heard).to_contain_text("unwanted: “horror” → horror")
    expect(heard).to_contain_text("not understood: “zorblat”")
    assert page.locator("h2 mark").all_inner_texts() == ["Toy Story", "horror", "zorblat"]


def test_everything_by_keyboard_alone(opened: Opened) -> None:
    page = opened("#r=")
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            "() => { const own = document.activeElement, style = getComputedStyle(own);"
            " return [own.id || own.textContent, style.outlineStyle, parseFloat(style.outlineWidth)]; }"
        )
        seen.append(focused[0])
        assert focused[1] == "solid", focused
        assert focused[2] >= 3, focused
        if focused[0] == "results":
            break
    for name in ("person", "surprise", "title", "more", "strength", "copy", "comedy, but no horror"):
        assert name in seen, seen
    page.locator("#title").focus()
    page.keyboard.type("toy")
    expect(page.locator("#options li")).to_have_count(2)
    page.keyboard.press("ArrowDown")
    expect(page.locator("#title")).to_have_attribute("aria-activedescendant", "option-1")
    page.keyboard.press("Enter")
    expect(page.locator("#history li").last).to_contain_text("Toy Story 2")
    page.keyboard.type("tale")
    expect(page.locator("#options li")).to_have_count(8)
    page.keyboard.press("Escape")
    expect(page.locator("#options")).to_be_hidden()
    number = page.locator("#history li").count()
    page.locator("#history button").last.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#history li")).to_have_count(number - 1)
    assert page.evaluate("document.activeElement.closest('#history') !== null")


def test_the_strength_by_keyboard(opened: Opened) -> None:
    page = opened(f"#h=i3&h=i7&r={REQUEST}&s=1")
    expect(page.locator("#results .after")).to_have_count(1)
    page.locator("#strength").focus()
    page.keyboard.press("Home")
    expect(page.get_by_role("status")).to_contain_text("0 titles came, 0 went.")
    before, after = lists(page)
    assert before == after
    expect(page.locator("#strength")).to_have_attribute("aria-valuetext", "0.0 (as if nothing was asked)")


def test_several_requests_and_the_link_to_them(opened: Opened) -> None:
    page = opened("#h=i3&h=i0")
    ask(page, "comedy")
    page.get_by_role("button", name="Compare another").click()
    ask(page, "no <b>horror</b> & so on", 1)
    expect(page.locator("#results .column")).to_have_count(3)
    shown = lists(page)
    expect(page.locator("#history li").last).to_contain_text(SCRIPT)
    copy = opened(page.url.partition("/#")[2] and "#" + page.url.partition("/#")[2])
    expect(copy.locator("#results .column")).to_have_count(3)
    expect(copy.locator("#history li").last).to_contain_text(SCRIPT)
    assert lists(copy) == shown
    copy.locator("summary").first.click()
    expect(copy.locator(".went li").first).to_be_visible()
    copy.get_by_role("button", name="Remove request 1").click()
    expect(copy.locator("#results .column")).to_have_count(2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_can_be_read(opened: Opened, width: int, scheme: str) -> None:
    page = opened(f"#h=i3&h=i0&r={REQUEST}&r=zorblat&r=comedy", width, color_scheme=scheme)
    expect(page.locator("#results .column")).to_have_count(4)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(PALE) == []
    boxes = [page.locator("#results .column").nth(place).bounding_box() for place in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    assert boxes[1]["x"] + boxes[1]["width"] <= width
    rows = [page.locator("#results ol").nth(place).locator("li").nth(6).bounding_box()["y"] for place in (0, 1)]
    assert rows[0] == rows[1]


def test_errors_are_told_in_words(opened: Opened) -> None:
    page = opened("#h=nothing&r=comedy")
    expect(page.get_by_role("alert")).to_contain_text("No item has the item_id 'nothing'.")
    page.locator("#person").select_option(index=1)
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.locator("#results .column")).to_have_count(2)
    page.route("**/api/recommend", lambda route: route.abort())
    with page.expect_event("console"):
        page.get_by_role("button", name="Show the lists").click()
    expect(page.get_by_role("alert")).to_contain_text("the recommender does not answer")


def test_a_history_that_is_emptied(opened: Opened) -> None:
    page = opened()
    expect(page.locator("#results .column")).to_have_count(2)
    page.locator("#person").select_option(index=0)
    expect(page.get_by_role("status")).to_have_text("Pick a person, or add a title that they met.")
    page.get_by_role("button", name="Surprise me").click()
    expect(page.locator("#results .column")).to_have_count(2)


def test_the_last_of_quick_changes_is_shown(opened: Opened) -> None:
    page = opened("#h=i3")
    delays = iter([0.5, 0.0])
    page.route("**/api/recommend", lambda route: (time.sleep(next(delays, 0.0)), route.continue_()))
    field = page.locator("#requests input")
    for text in ("comedy", "no horror"):
        field.fill(text)
        field.press("Enter")
    expect(page.locator("#results h2").last).to_contain_text("no horror")
    expect(page.locator("#results h2").last).not_to_contain_text("comedy")
