"""The built site: whole, and readable in a browser, on a phone too. ``make browser`` builds and checks it."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image

import patchlib

ROOT = Path(__file__).parents[1]
SITE = ROOT / "site"
PHONE = {"width": 390, "height": 844}
REFUSED = ".math [data-mjx-error], .math [fill=red]"  # what MathJax can't read, and commands that it doesn't know


@pytest.fixture(scope="module")
def pages():
    """{file: its parsed HTML}"""
    from bs4 import BeautifulSoup

    files = sorted(SITE.rglob("*.html"))
    if not files:
        pytest.skip("there's no built site here: `make browser` builds and checks it")
    return {file: BeautifulSoup(file.read_text(), "html.parser") for file in files}


def test_no_link_leads_nowhere_and_no_picture_is_missing(pages):
    anchors = {file: {tag["id"] for tag in html.select("[id]")} for file, html in pages.items()}
    missing = set()
    for file, html in pages.items():
        for tag in html.select("[href], [src]"):
            address = tag.get("href") or tag.get("src")
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            gone = target in anchors and parts.fragment and unquote(parts.fragment) not in anchors[target]
            if gone or not target.is_file():
                missing.add((file.name, address))
    assert not missing


def test_every_picture_is_described(pages):
    assert not {
        (file.name, tag["src"])
        for file, html in pages.items()
        for tag in html.select("img")
        if not tag.get("alt") or tag["alt"] == tag["src"]
    }


def test_pages_open_without_an_error_with_their_formulas_and_fit_a_phone(pages, chromium):
    page, wrong = chromium.new_page(viewport=PHONE), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: message.type in ("error", "warning") and wrong.append(message.text))
    page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
    found, formulas = {}, 0
    for file in pages:
        page.goto(file.as_uri())
        page.wait_for_function("!window.MathJax?.startup || MathJax.startup.promise.then(() => true)")
        wide = page.evaluate("Math.max(...[...document.querySelectorAll('html, .content')].map(e => e.scrollWidth))")
        asked, set_in_type, refused = (
            page.locator(selector).count() for selector in (".math", ".math > mjx-container", REFUSED)
        )
        formulas += asked
        if wrong or wide > PHONE["width"] or asked != set_in_type or refused:
            found[file.name] = f"{wrong}, {wide} pixels wide, {set_in_type} of {asked} formulas, {refused} refused"
            wrong.clear()
    assert not found and formulas


def test_the_api_page_has_every_public_module():
    text = (ROOT / "docs" / "api.md").read_text()
    modules = {name for name in patchlib.__all__ if (ROOT / "patchlib" / name).with_suffix(".py").exists()} | {"layers"}
    assert modules == {line.strip().removeprefix("patchlib.") for line in text.splitlines() if line.startswith("   p")}


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "guides").glob("*.md")), ids=lambda path: path.stem)
def test_a_guides_code_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((40, 50, 3), "uint8")).save("cat.png")
    namespace = {}
    for code in re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
        exec(code, namespace)
