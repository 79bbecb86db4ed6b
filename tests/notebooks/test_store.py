"""`scripts/notebooks.py`: a notebook is stored whole and clean, or not at all."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from notebooks import WIDGET_VIEW, find_faults, hash_code, store, tidy

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
    recorded = store(path, text)
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
    assert 10 < recorded["peak_mib"] < 2048


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("1 / 0", CellExecutionError, "ZeroDivisionError"),
        ("import warnings; warnings.warn('careful')", ValueError, "cell 1 wrote to stderr"),
    ],
)
def test_notebook_that_fails_stays_as_it_was(tmp_path: Path, source: str, error: type[Exception], message: str) -> None:
    path = write(tmp_path, "print('fine')", source)
    before = path.read_bytes()
    with pytest.raises(error, match=message):
        store(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


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
