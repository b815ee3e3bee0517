"""The alert inbox as people see it, in headless Chromium."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.alerts import alert
from tests.support.inbox import Running, running

# Nothing that a browser would like to fetch for itself can be reached from everywhere.
ARGUMENTS = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><b>bold</b>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    path = shutil.which("chromium")
    assert path is not None
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=ARGUMENTS, chromium_sandbox=False)
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page in a context of its own."""
    context = browser.new_context()
    made = context.new_page()
    yield made
    context.close()


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[Running]:
    """With one runbook."""
    folder = tmp_path / "runbooks"
    folder.mkdir()
    (folder / "QueueFull.md").write_text("# QueueFull\n\n## Meaning\n\nRequests are **refused**.\n")
    with running(tmp_path) as started:
        yield started


def test_firing_alerts_come_first_with_what_one_needs(inbox: Running, page: Page) -> None:
    """Severity, name, summary, description, labels and a way to the runbook; resolved ones below."""
    inbox.post(alert("QueueFull", labels={"subject": "queue-full"}))
    inbox.post(alert("DiskFull", status="resolved"))
    page.goto(str(inbox.client.base_url))
    expect(page).to_have_title("1 firing: Safelight's alert inbox")
    firing = page.locator("#firing article")
    expect(firing).to_have_count(1)
    for text in ("warning", "QueueFull", "QueueFull is so", "Look at it.", "subject=queue-full"):
        expect(firing).to_contain_text(text)
    expect(page.locator("#resolved tbody tr")).to_contain_text("DiskFull")
    firing.get_by_role("link", name="Runbook").click()
    expect(page.get_by_role("heading", name="Meaning")).to_be_visible()
    expect(page.locator("main strong")).to_have_text("refused")


def test_an_alert_leaves_when_it_is_over(inbox: Running, page: Page) -> None:
    """The page looks again by itself."""
    inbox.post(alert())
    page.goto(str(inbox.client.base_url))
    expect(page.get_by_role("heading", name="1 firing")).to_be_visible()
    inbox.post(alert(status="resolved"))
    expect(page.get_by_role("heading", name="Nothing firing")).to_be_visible(timeout=60_000)


def test_what_an_alert_says_is_text(inbox: Running, page: Page) -> None:
    """Nothing in it is run, loaded or shown as HTML."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    inbox.post(alert(annotations={"summary": HOSTILE, "runbook_url": "javascript:alert(1)"}, labels={"where": HOSTILE}))
    page.goto(str(inbox.client.base_url))
    expect(page.locator("#firing article")).to_contain_text(HOSTILE)
    expect(page.locator("img")).to_have_count(0)
    assert page.locator("a[href^='javascript']").count() == 0
    assert {url.removeprefix(str(inbox.client.base_url)) for url in asked} <= {"", "/", "/favicon.ico", "favicon.ico"}


def test_a_missing_watchdog_cannot_be_overlooked(tmp_path: Path, page: Page) -> None:
    """A banner, which a screen reader says at once, and the title."""
    with running(tmp_path, inbox_watchdog_timeout=1) as inbox:
        inbox.post(alert("Watchdog"))
        page.goto(str(inbox.client.base_url))
        expect(page.get_by_role("alert")).to_contain_text("The watchdog is missing", timeout=60_000)
        expect(page).to_have_title("Watchdog missing, 0 firing: Safelight's alert inbox")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_telephone(inbox: Running, browser: Browser, scheme: str) -> None:
    """In either colour scheme, without scrolling sideways."""
    inbox.post(alert(annotations={"description": "A long word: " + "x" * 200}))
    context = browser.new_context(viewport={"width": 360, "height": 640}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(str(inbox.client.base_url))
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()
