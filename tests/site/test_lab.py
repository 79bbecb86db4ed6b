"""Readers' notebooks in JupyterLab, driven as a reader does: run all, unfold a solution, move a slider, save."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest
from cross_references import Book
from notebooks import BOOK, CHANGED, KERNEL_ENVIRONMENT, ROOT, find_notebooks
from reader import MARK, make, text_hash, write

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

RUN = "own-loop"  # takes few seconds
LOOKED_AT = "part2/mmd"  # opens with a figure that the hand moves
DRAWN = "part1/shift"  # has a figure that the kernel draws, and trains nothing before it
PAGES = [path.relative_to(BOOK).with_suffix("").as_posix() for path in find_notebooks()]
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight are in the page too
}
SECOND = 1000  # Playwright counts in thousandths


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    book = Book(BOOK)
    for name in PAGES:
        made = make(nbformat.read(BOOK / f"{name}.ipynb", as_version=4), name, book)
        write(made, folder / "notebooks" / f"{name}.ipynb")
    for name, values in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    return folder


def options_of_make_lab() -> list[str]:
    """Those of JupyterLab, but for the folder."""
    said = subprocess.run(["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in said.splitlines() if "jupyter lab " in line]
    options = shlex.split(line)[2:]
    return [option for option in options if not option.startswith("--notebook-dir=")]


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """A server of its own, which knows nothing of the user's settings, and trusts the notebooks as `make lab` does."""
    environment = {
        **os.environ,
        **KERNEL_ENVIRONMENT,
        "DEEPTRANSFER_PROGRESS": "",  # readers see the bars
        "DEEPTRANSFER_LIVE": "",  # and move the sliders
        **{f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")},
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "IPYTHONDIR": str(folder / "ipython"),
    }
    notebooks = folder / "notebooks"
    trust = [sys.executable, "-m", "jupyter", "trust", *map(str, notebooks.rglob("*.ipynb"))]
    subprocess.run(trust, env=environment, capture_output=True, check=True)
    options = [
        "--no-browser",
        "--allow-root",
        "--port=0",
        "--IdentityProvider.token=reader",
        f"--notebook-dir={notebooks}",
        *options_of_make_lab(),
    ]
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "jupyter", "lab", *options]
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield _wait_for(folder / "runtime", server)
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(runtime: Path, server: subprocess.Popen[bytes]) -> str:
    """The address that the server tells once it listens."""
    for _ in range(120):
        assert server.poll() is None, "JupyterLab has ended"
        if found := sorted(runtime.glob("jpserver-*.json")):
            return str(json.loads(found[0].read_text(encoding="utf-8"))["url"])
        time.sleep(0.5)
    pytest.fail("JupyterLab does not start")


@pytest.fixture
def open_notebook(address: str, browser: Browser) -> Iterator[Callable[[str], Page]]:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})

    def open_one(name: str) -> Page:
        page.goto(f"{address}lab/tree/{name}.ipynb?token=reader&reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120 * SECOND)
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=120 * SECOND)
        return page

    yield open_one
    for session in page.request.get(f"{address}api/sessions?token=reader").json():  # a kernel takes a GiB
        page.request.delete(f"{address}api/sessions/{session['id']}?token=reader")
    page.close()


def choose(page: Page, menu: str, item: str) -> None:
    page.locator(".lm-MenuBar-item", has_text=menu).first.click()
    page.get_by_role("menuitem", name=item).first.click()


@pytest.mark.parametrize("name", [RUN, *(pytest.param(n, marks=pytest.mark.again) for n in PAGES if n != RUN)])
def test_a_reader_runs_all_and_saves(name: str, folder: Path, open_notebook: Callable[[str], Page]) -> None:
    """One notebook at every change, and each of them where ``-m again`` asks for it, once a week."""
    path = folder / "notebooks" / f"{name}.ipynb"
    before = nbformat.read(path, as_version=4)
    page = open_notebook(name)
    choose(page, "Run", "Run All Cells")
    waiting = page.locator(".jp-InputPrompt", has_text="[*]")
    waiting.first.wait_for(state="attached")
    if "part" in name:  # its training shows how far it is
        page.locator(".widget-hprogress").first.wait_for(timeout=300 * SECOND)
    waiting.first.wait_for(state="detached", timeout=900 * SECOND)
    assert not page.locator(".jp-Dialog").all_inner_texts()
    choose(page, "File", "Save Notebook")
    page.wait_for_function("() => !document.querySelector('.jp-mod-dirty')", timeout=60 * SECOND)

    after = nbformat.read(path, as_version=4)
    assert text_hash(after) == before.metadata[MARK]["text"]  # running is no change of the reader's
    assert after.metadata[MARK] == before.metadata[MARK]
    ran = [cell for cell in after.cells if cell.cell_type == "code" and cell.source]
    assert all(cell.execution_count for cell in ran)
    outputs = [output for cell in ran for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or CHANGED in output.get("text", "")]


def test_it_starts_without_a_question_and_without_a_list_of_what_is_missing(
    folder: Path, open_notebook: Callable[[str], Page]
) -> None:
    page = open_notebook(RUN)
    page.wait_for_timeout(8 * SECOND)  # JupyterLab asks a while after it has opened
    assert not page.locator(".Toastify__toast").all_inner_texts()
    assert "Skipped non-installed server" not in (folder / "log").read_text(encoding="utf-8")


def test_a_solution_unfolds(open_notebook: Callable[[str], Page]) -> None:
    page = open_notebook(RUN)
    solution = page.locator(".jp-MarkdownCell details", has_text="Solution of Exercise").first
    code = solution.locator("pre").first
    assert not code.is_visible()
    solution.locator("summary").click()
    assert code.is_visible()


def test_formulas_live_figures_and_collapsed_code_are_seen(open_notebook: Callable[[str], Page]) -> None:
    page = open_notebook(LOOKED_AT)
    page.wait_for_selector(".jp-MarkdownCell mjx-container", timeout=120 * SECOND)
    signs = page.locator("mjx-labels").first.locator("mjx-c")
    assert [sign.get_attribute("class") for sign in signs.all()][:5] == [f"mjx-c{ord(sign):X}" for sign in "(3.1)"]
    assert page.locator(".live .live-handle").first.is_visible()
    first = page.locator(".jp-CodeCell").first
    assert first.locator(".jp-InputArea .jp-Placeholder, .jp-InputPlaceholder").first.is_visible()
    assert not first.locator(".cm-content").count()
    assert not page.locator("mjx-merror").count()
    assert not page.locator("details[open]").count()


def test_a_live_figure_is_a_widget_that_moves(open_notebook: Callable[[str], Page]) -> None:
    page = open_notebook(LOOKED_AT)
    page.locator(".live figcaption").first.click()
    page.keyboard.press("Shift+Enter")
    handle = page.locator(".jp-OutputArea-output .live:not(figure) .live-handle").first
    handle.wait_for(timeout=180 * SECOND)
    before = handle.get_attribute("aria-valuetext")
    handle.focus()
    handle.press("Shift+ArrowLeft")
    page.wait_for_function(
        "before => document.querySelector('.live:not(figure) .live-handle').ariaValueText !== before", arg=before
    )


def test_a_slider_draws_afresh_below_itself(open_notebook: Callable[[str], Page]) -> None:
    page = open_notebook(DRAWN)
    page.locator(".explore figcaption").first.click()
    choose(page, "Run", "Run All Above Selected Cell")
    page.keyboard.press("Shift+Enter")
    figure = page.locator(".explore-live")
    figure.wait_for(timeout=180 * SECOND)
    picture, handle = figure.locator("img"), figure.locator(".noUi-handle").first
    above, below = handle.bounding_box(), picture.bounding_box()
    assert above
    assert below
    assert above["y"] + above["height"] <= below["y"]
    seen = {str(picture.get_attribute("src"))}
    handle.focus()
    for _ in range(3):
        began = time.perf_counter()
        handle.press("ArrowRight")  # to a value that no stored frame has
        page.wait_for_function("seen => !seen.includes(document.querySelector('.explore-live img').src)", arg=[*seen])
        assert time.perf_counter() - began < 3  # a third of a second on a machine with nothing else to do
        seen.add(str(picture.get_attribute("src")))
