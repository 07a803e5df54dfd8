"""A notebook in JupyterLab, in a browser, as a reader runs it. ``make browser`` runs this."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATIENCE = 600_000  # milliseconds for all cells, on a busy machine


@pytest.fixture(scope="module")
def lab(tmp_path_factory, chromium):
    """The address of a JupyterLab on a copy of the notebooks, since it saves what it runs."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--port=0",
        "--expose-app-in-browser",
    ]
    command += ["--ServerApp.ip=127.0.0.1", "--IdentityProvider.token=", folder / "notebooks"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for line in server.stderr:
            if found := re.search(r"http://127\.0\.0\.1:\d+/lab", line):
                yield found[0]
                break
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def notebook(lab, chromium):
    """ConvMixer's notebook, open, in a kernel of its own."""
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{lab}/tree/convmixer.ipynb?reset")
    page.locator("strong", has_text="Thesis").wait_for()
    page.evaluate("globalThis.panel = jupyterapp.shell.currentWidget; panel.sessionContext.ready.then(() => true)")
    yield page
    page.evaluate("panel.sessionContext.shutdown()")
    page.close()


def run_all(page):
    """By the menu; back when the first cell has run and no other waits or runs any more."""
    page.evaluate("jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(
        """() => {
            const cells = panel.content.widgets.map(cell => cell.model).filter(cell => cell.type == "code")
            return cells[0].executionCount && cells.every(cell => cell.executionState == "idle")
        }""",
        timeout=PATIENCE,
    )


def outputs(page):
    """Of all cells, as the notebook's file would have them."""
    return page.evaluate("panel.content.model.toJSON().cells.flatMap(cell => cell.outputs ?? [])")


def figures(page):
    return sum("image/png" in output.get("data", {}) for output in outputs(page))


def test_run_all_draws_the_figures(notebook):
    stored = figures(notebook)
    run_all(notebook)
    assert not [output for output in outputs(notebook) if output["output_type"] == "error"]
    assert figures(notebook) == stored > 0
    notebook.evaluate("panel.content.scrollToItem(8)")
    figure = notebook.locator(".jp-OutputArea img").first
    figure.scroll_into_view_if_needed()
    assert figure.is_visible() and figure.evaluate("image => image.naturalWidth")


def test_a_wrong_parameter_is_refused_in_a_sentence_in_sight(notebook):
    notebook.evaluate(
        """() => {
            const source = panel.content.model.cells.get(1).sharedModel
            source.setSource(source.getSource().replace("kernel_size: int = 5", "kernel_sise: int = 5"))
        }"""
    )
    run_all(notebook)
    sentence = notebook.locator(".jp-OutputArea").get_by_text("did you mean 'kernel_size'?")
    sentence.scroll_into_view_if_needed()
    assert sentence.is_visible() and figures(notebook) == 0
