"""A browser for pages, and pages without pictures."""

import shutil

import pytest


@pytest.fixture
def no_pictures(monkeypatch):
    """Disables the plots, which take most of a page's time, for tests that do not look at them."""
    monkeypatch.setattr("svt_jax.analysis.report.page._pictures", lambda run, baseline: [])


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, page, tmp_path):
    """Opens the page from its file; returns the tab and the errors in it."""
    file = tmp_path / "report.html"
    contexts = []

    def open_page(width=1280, scheme="light", text=page, **options):
        file.write_text(text, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, **options)
        contexts.append(context)
        tab, wrong = context.new_page(), []
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on(
            "request", lambda request: None if request.url.startswith(("file:", "data:")) else wrong.append(request.url)
        )
        tab.goto(file.as_uri())
        return tab, wrong

    yield open_page
    for context in contexts:
        context.close()
