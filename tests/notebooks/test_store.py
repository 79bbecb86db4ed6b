"""`scripts/notebooks.py`: a notebook is stored whole and clean, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from notebooks import WIDGET_VIEW, find_faults, hash_code, kernel_environment, store, tidy

TEXT = """# Title

```{code-cell}
import os
threads, progress = os.environ["OMP_NUM_THREADS"], os.environ["DEEPTRANSFER_PROGRESS"]
```

```{code-cell}
:tags: [hide-input]
:tolerance: {"abs": 0.5, "why": "measured"}
:editable: true

print(threads, progress, os.path.basename(os.getcwd()))
```
"""


def write(folder: Path, *sources: str) -> Path:
    path = folder / "chapter.ipynb"
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(notebook, path)
    return path


def test_text_becomes_a_notebook_with_its_outputs(tmp_path: Path) -> None:
    text, path = tmp_path / "chapter.md", tmp_path / "part" / "chapter.ipynb"
    text.write_text(TEXT, encoding="utf-8")
    held = bytearray(400 * 2**20)  # what the process that stores holds is not the kernel's
    recorded = store(path, text)
    del held
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    title, first, second = notebook.cells
    assert title.source == "# Title"
    assert [first.execution_count, second.execution_count] == [1, 2]
    assert second.outputs[0].text == "1 0 part\n"
    assert second.metadata == {"tags": ["hide-input"], "tolerance": {"abs": 0.5, "why": "measured"}}
    assert notebook.metadata["stored"] == recorded
    assert recorded["code"] == hash_code(notebook)
    assert 0 < recorded["seconds"] < 100
    assert 10 < recorded["peak_mib"] < 400


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("1 / 0", CellExecutionError, "ZeroDivisionError"),
        ("import warnings; warnings.warn('careful')", ValueError, "cell 1 wrote to stderr"),
        (
            "from deeptransfer.claims import as_stored\nas_stored('accuracy', 64.2, 78.9, within=0.3)",
            ValueError,
            "cell 1 is not as the book says: you changed the recipe: accuracy is 64.20 % here, stored is 78.90 %",
        ),
    ],
)
def test_notebook_that_fails_stays_as_it_was(tmp_path: Path, source: str, error: type[Exception], message: str) -> None:
    path = write(tmp_path, "print('fine')", source)
    before = path.read_bytes()
    with pytest.raises(error, match=message):
        store(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_cell_that_takes_long_tells_its_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another process does the work; and no longer, when it has become quick."""
    monkeypatch.setattr("notebooks.LONG", 1)
    work = "end = time.process_time() + 1.2\nwhile time.process_time() < end: pass"
    child = f"subprocess.run([sys.executable, '-c', 'import time\\n' + {work!r}], check=True)"
    path = write(tmp_path, "import subprocess, sys, time", work, f"_ = {child}", "quick = True")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[3].metadata = {"does": "Nothing.", "seconds": 7}
    nbformat.write(notebook, path)
    store(path)
    _, busy, waits, quick = (cell.metadata for cell in nbformat.read(path, as_version=4).cells)
    assert busy["seconds"] == waits["seconds"] == 1
    assert quick == {"does": "Nothing."}


def test_tidy_is_the_same_every_time() -> None:
    """Random ids and an editor's marks would make every commit a change of every cell."""
    notebooks = [nbformat.v4.new_notebook() for _ in range(2)]
    for notebook in notebooks:
        notebook.cells = [nbformat.v4.new_code_cell("x", metadata={"collapsed": True}) for _ in range(3)]
        tidy(notebook)
    assert notebooks[0] == notebooks[1]
    assert len({cell.id for cell in notebooks[0].cells}) == 3


def test_live_widget_is_stored_only_as_html() -> None:
    notebook = nbformat.v4.new_notebook()
    view = {WIDGET_VIEW: {"model_id": "4f1c"}}
    both, alone = (nbformat.v4.new_output("display_data", data) for data in ({**view, "text/html": "<p>"}, view))
    notebook.cells = [nbformat.v4.new_code_cell("x", outputs=[both]), nbformat.v4.new_code_cell("y", outputs=[alone])]
    tidy(notebook)
    assert list(notebook.cells[0].outputs[0].data) == ["text/html"]
    assert find_faults(notebook) == ["cell 1 shows a widget that is blank without a kernel: give it a text/html form"]


SHOWS = """import os
import matplotlib.pyplot as plt
from IPython import get_ipython
plt.plot([0, 1])
plt.show()
print(os.environ.get("TZ"), "{:n}".format(1234.5), plt.rcParams["lines.linewidth"], "started" in globals())
"""


def hostile_settings(folder: Path) -> dict[str, str]:
    """What a user may have exported and configured, each of which would change or lose an output."""
    profile = folder / "ipython" / "profile_default" / "startup"
    profile.mkdir(parents=True)
    (profile / "first.py").write_text("started = True", encoding="utf-8")
    (folder / "matplotlibrc").write_text("lines.linewidth: 9", encoding="utf-8")
    (folder / "startup.py").write_text("started = True", encoding="utf-8")
    return {
        "HOME": "/dev/null/home",
        "MPLBACKEND": "Agg",
        "MATPLOTLIBRC": str(folder / "matplotlibrc"),
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONSTARTUP": str(folder / "startup.py"),
        "PYTHONOPTIMIZE": "1",
        "LC_ALL": "de_DE.UTF-8",
        "TZ": "Asia/Tokyo",
        "OMP_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
    }


def described(source: str) -> nbformat.NotebookNode:
    """A cell whose metadata has words for its picture."""
    return nbformat.v4.new_code_cell(source, metadata={"mystnb": {"image": {"alt": "A line"}}})


def test_the_users_settings_do_not_reach_the_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in hostile_settings(tmp_path / "settings").items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "chapter.ipynb"
    check = "import os\nassert False, [os.environ.get(n) for n in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS')]"
    told = f"try:\n    exec({check!r})\nexcept AssertionError as error:\n    print(error)"
    nbformat.write(nbformat.v4.new_notebook(cells=[described(SHOWS), nbformat.v4.new_code_cell(told)]), path)
    store(path)
    first, second = nbformat.read(path, as_version=4).cells
    assert "image/png" in first.outputs[0].data
    assert first.outputs[1].text == "UTC 1234.5 1.5 False\n"
    assert second.outputs[0].text == "['1', None]\n"


def test_only_what_is_set_on_purpose_wins_when_outputs_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    stores, compares = kernel_environment(), kernel_environment(compares=True)
    assert (stores["OMP_NUM_THREADS"], compares["OMP_NUM_THREADS"]) == ("1", "3")
    assert "inline" in compares["MPLBACKEND"]
    assert compares["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert compares["PATH"] == os.environ["PATH"]


def test_a_cell_that_lost_its_picture_is_not_stored(tmp_path: Path) -> None:
    path = tmp_path / "chapter.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[described("print('no picture')")]), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="cell 0 has words for a picture in its metadata and shows none"):
        store(path)
    assert path.read_bytes() == before
