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
    (folder / "results").symlink_to(ROOT / "results")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0", "--expose-app-in-browser"]
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
    """ConvMixer's notebook, open."""
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{lab}/tree/convmixer.ipynb?reset")
    page.get_by_text("Thesis: once an image is cut").wait_for()
    page.evaluate("jupyterapp.shell.currentWidget.sessionContext.ready")
    yield page
    page.close()


def run_all(page):
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells").click()


def test_run_all_draws_the_figures(notebook):
    notebook.evaluate("jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    run_all(notebook)
