"""The documentation as a site: it builds, needs no network and no server, fits a phone, and can be read by all."""

import re
import subprocess
import sys

import pytest
import yaml

import svt_jax
from tests.pages import ROOT

SITE = ROOT / "docs" / "site"
LOOKED_AT = ("index", "tutorials/search", "remedies", "measures", "api/functions", "scores")


def test_every_public_name_is_in_the_reference_once():
    pages = "".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "api").glob("*.md")))
    named = re.findall(r"^::: svt_jax\.(?:spectral\.)?(\w+)$", pages, re.MULTILINE)
    assert sorted(named) == sorted(svt_jax.__all__)


def test_every_page_is_in_the_navigation():
    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        return [page for each in (entry.values() if isinstance(entry, dict) else entry) for page in pages(each)]

    there = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    found = pages(yaml.safe_load((SITE / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(found) == sorted(there)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", str(SITE / "mkdocs.yml"), "-d", str(folder)],
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])


@pytest.mark.slow
@pytest.mark.docs
def test_each_link_of_the_site_leads_to_a_place(site):
    """MkDocs checks the pages' own links; this also checks those of the theme and of the docstrings."""
    texts = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html") if page.name != "404.html"}
    places = {page: {*re.findall(r'\bid="?([^"\s>]+)', text), ""} for page, text in texts.items()}
    wrong = []
    for page, text in texts.items():
        for link in re.findall(r'<(?:a|img|script|link)\b[^>]*?\b(?:href|src)="?([^"\s>]+)', text):
            if re.match(r"(https?|mailto|data):|javascript", link) and "javascripts/" not in link:
                continue
            file, _, place = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            if not target.exists() or (target in places and place not in places[target]):
                wrong.append(f"{page.relative_to(site)}: {link}")
    assert wrong == []


@pytest.mark.slow
@pytest.mark.docs
@pytest.mark.browser
def test_the_site_opens_from_a_file_without_network_and_its_search_finds(site, browser):
    page = browser.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((site / "index.html").as_uri())
    page.locator("input.md-search__input").press_sequentially("SoftDecay", delay=20)
    page.locator(".md-search-result__item").first.wait_for(state="attached", timeout=60_000)
    assert page.locator(".md-search-result__item").count() > 3
    assert [url for url in asked if not url.startswith("file:")] == []


@pytest.mark.slow
@pytest.mark.docs
@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_pages_fit_the_screen_and_break_no_rule_of_axe(site, browser, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    found = []
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    for name in LOOKED_AT:
        page.goto((site / f"{name}.html").as_uri())
        if page.evaluate("document.documentElement.scrollWidth") > width:
            found.append(f"{name} is wider than {width}")
        for rule in Axe().run(page).response["violations"]:
            found.append(f"{name}: {rule['id']}: {rule['nodes'][0]['html'][:200]}")
    assert found == []
