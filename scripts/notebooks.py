"""Execute notebooks and store their outputs: the only way outputs get into the book.

    python scripts/notebooks.py                                           every notebook of the book
    python scripts/notebooks.py book/part2/mmd.ipynb                      this one
    python scripts/notebooks.py book/part2/mmd.ipynb --from-text mmd.md   its cells from a MyST or percent script

A notebook is written only when every cell ran, without an error and without a word on stderr. Its metadata then tell
the seconds of processor time and the peak memory in MiB that its kernel took, and a hash of its code, by which the
tests know that the outputs belong to this code. With one thread, processor time is what a clock shows on an idle
machine; a busy one does not change it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
CHANGED = "you changed the recipe"  # what `deeptransfer.claims` prints where the book's numbers do not come out
LONG = 5  # processor seconds from which a reader is told how long a cell takes

# Under what outputs are stored and compared. One thread: sums in one order, and two notebooks at once fill two cores.
KERNEL_ENVIRONMENT = {
    "DEEPTRANSFER_PROGRESS": "0",
    "DEEPTRANSFER_LIVE": "0",  # figures with sliders as frames
    "DEEPTRANSFER_DEVICE": "cpu",
    "OMP_NUM_THREADS": "1",  # MKL and OpenBLAS follow it
    "PYTHONHASHSEED": "0",
    # Of x86 processors, what all of them can do: others round differently, and a training in float32 ends elsewhere.
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    # Freed memory is kept: convolutions in double precision spend half their time on getting their buffers again.
    "MALLOC_MMAP_THRESHOLD_": "67108864",
    "MALLOC_TRIM_THRESHOLD_": "134217728",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else a debugger's remark lands on stderr
}
# May be others where outputs are only compared.
ON_PURPOSE = ("DEEPTRANSFER_DEVICE", "OMP_NUM_THREADS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
# A kernel has a home of its own: no profile, no matplotlibrc, no start-up file, and it can be written.
HOME = ROOT / "data" / "cache" / "home"
OWN_SETTINGS = {
    "HOME": str(HOME),
    "USERPROFILE": str(HOME),
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # with another one no picture is stored
    "LC_ALL": "C",
    "PYTHONUTF8": "1",
    "PYTHONNOUSERSITE": "1",
    "TZ": "UTC",
}
# What the user's environment says beside that is kept, but for settings of what runs in the kernel.
SETTINGS = (
    *("MPL", "MATPLOTLIB", "IPYTHON", "JUPYTER", "XDG_", "LC_", "LANG", "COLUMNS", "LINES", "TZ"),
    *("PYTHONSTARTUP", "PYTHONWARNINGS", "PYTHONOPTIMIZE", "PYTHONINSPECT", "PYTHONDEVMODE", "FORCE_COLOR", "CLICOLOR"),
    *("OMP_", "MKL_", "OPENBLAS_", "KMP_", "TORCH_", "DEEPTRANSFER_", "SOLUTIONS"),
)

LIVE_FIGURE = '<figure class="live"'
KEPT_CELL_METADATA = {"tags", "mystnb", "caption", "tolerance", "does", "seconds"}


def find_notebooks() -> list[Path]:
    """All notebooks of the book, in the order of their paths."""
    return sorted(path for path in BOOK.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def hash_code(notebook: nbformat.NotebookNode) -> str:
    """Hash of all code cells: outputs stored with another hash belong to other code."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()[:16]


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Remove what changes from run to run or from editor to editor, in place."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python", "pygments_lexer": "ipython3"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    taken: set[str] = set()
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in KEPT_CELL_METADATA & set(cell.metadata)})
        digest = hashlib.sha256(cell.source.encode()).hexdigest()[:8]
        cell.id = next(name for n in range(len(taken) + 1) if (name := digest + (f"-{n}" if n else "")) not in taken)
        taken.add(cell.id)
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):
                output.data.pop(WIDGET_VIEW, None)  # a random id, and blank without its kernel


def kernel_environment(compares: bool = False) -> dict[str, str]:
    """The environment of a kernel, the same whoever starts it.

    Parameters
    ----------
    compares
        Whether outputs are only compared; a thread count or device that is set on purpose then wins.
    """
    HOME.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
    wanted = {name: os.environ[name] for name in ON_PURPOSE if compares and name in os.environ}
    return {**kept, **KERNEL_ENVIRONMENT, **OWN_SETTINGS, **wanted}


def shows_sliders(cell: nbformat.NotebookNode) -> bool:
    """Whether an output of the cell is a figure with sliders."""
    return any('class="explore"' in output.get("data", {}).get("text/html", "") for output in cell.get("outputs", []))


def shows_a_picture(cell: nbformat.NotebookNode) -> bool:
    """Whether an output of the cell is a picture or a figure that the reader moves."""
    shown = [output.get("data", {}) for output in cell.get("outputs", [])]
    pictures = any("image/png" in data or data.get("text/html", "").startswith(LIVE_FIGURE) for data in shown)
    return pictures or shows_sliders(cell)


def find_faults(notebook: nbformat.NotebookNode) -> list[str]:
    """Outputs that must not reach a reader."""
    faults = []
    for place, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                faults.append(f"cell {place} wrote to stderr: {output.text.strip()[:300]}")
            if CHANGED in output.get("text", ""):
                faults.append(f"cell {place} is not as the book says: {output.text.strip()[:300]}")
            if WIDGET_VIEW in output.get("data", {}):
                faults.append(f"cell {place} shows a widget that is blank without a kernel: give it a text/html form")
        if "image" in cell.metadata.get("mystnb", {}) and not shows_a_picture(cell):
            faults.append(f"cell {place} has words for a picture in its metadata and shows none")
    return faults


@contextmanager
def kernel(notebook: nbformat.NotebookNode, folder: Path) -> Iterator[NotebookClient]:
    """A fresh kernel in ``folder`` for the cells of a notebook, under the conditions of the stored outputs."""
    client = NotebookClient(
        notebook,
        timeout=1000,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
    )
    # What a cell writes to stderr arrives as its output; the process's own stderr only says that it talks over TCP.
    with client.setup_kernel(cwd=str(folder), env=kernel_environment(), stderr=subprocess.DEVNULL):
        yield client


def execute(notebook: nbformat.NotebookNode, folder: Path) -> dict[str, Any]:
    """Run all cells in a fresh kernel, in place; a cell that takes long gets its ``seconds`` as metadata.

    Returns
    -------
    dict
        ``seconds`` of processor time and ``peak_mib`` of the kernel.
    """
    with kernel(notebook, folder) as client:
        seconds = peak = before = 0.0  # the start of the kernel counts for the first cell
        for place, cell in enumerate(notebook.cells):
            cell.metadata.pop("seconds", None)
            if cell.cell_type == "code":
                client.execute_cell(cell, place, execution_count=None)
                seconds, of_children, peak = _usage(client)
                # what is stored takes all settings of a figure with sliders, a reader's kernel draws one
                draws_only = shows_sliders(cell) and "does" not in cell.metadata
                if (taken := seconds + of_children - before) >= LONG and not draws_only:
                    cell.metadata["seconds"] = round(taken)
                before = seconds + of_children
    return {"seconds": round(seconds, 1), "peak_mib": round(peak)}


def _usage(client: NotebookClient) -> tuple[float, float, float]:
    """Processor seconds of the kernel and of the processes that it started, and its peak memory in MiB.

    On Linux ``ru_maxrss`` begins at the size of the process that started the kernel: the peak is read elsewhere.
    """
    usage = "__import__('resource').getrusage(__import__('resource').RUSAGE_{})"
    own, children = usage.format("SELF"), usage.format("CHILDREN")
    of_linux = "next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))"
    asked = {
        "seconds": f"{own}.ru_utime + {own}.ru_stime",
        "children": f"{children}.ru_utime + {children}.ru_stime",
        "peak": f"int({of_linux})" if sys.platform == "linux" else f"{own}.ru_maxrss",
    }
    message = client.kc.execute("", silent=True, user_expressions=asked)
    told = client.wait_for_reply(message)["content"]["user_expressions"]
    seconds, of_children, peak = (float(told[name]["data"]["text/plain"]) for name in asked)
    return seconds, of_children, peak / 2 ** (20 if sys.platform == "darwin" else 10)


def store(path: Path, text: Path | None = None) -> dict[str, Any]:
    """Execute one notebook and write it back with its outputs.

    Parameters
    ----------
    path
        The notebook.
    text
        A jupytext source to take the cells from, instead of the notebook's own.

    Returns
    -------
    dict
        What is recorded: ``seconds``, ``peak_mib``, ``code``.
    """
    if text:
        import jupytext  # only here: what makes the pages does without it

        notebook = jupytext.read(text, fmt="md:myst" if text.suffix == ".md" else "py:percent")
    else:
        notebook = nbformat.read(path, as_version=4)
    tidy(notebook)
    path.parent.mkdir(parents=True, exist_ok=True)
    run = execute(notebook, path.parent)
    tidy(notebook)
    if faults := find_faults(notebook):
        raise ValueError("\n".join(faults))
    notebook.metadata["stored"] = {**run, "code": hash_code(notebook)}
    nbformat.validate(notebook)
    part = path.with_suffix(".part")
    nbformat.write(notebook, part)
    part.replace(path)
    return notebook.metadata["stored"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="notebooks to execute (default: all of the book)")
    parser.add_argument("--from-text", type=Path, metavar="FILE", help="take the cells of one notebook from this text")
    arguments = parser.parse_args()
    if arguments.from_text and len(arguments.notebooks) != 1:
        parser.error("--from-text needs exactly one notebook to write")
    failed = 0
    for path in arguments.notebooks or find_notebooks():
        try:
            run = store(path.resolve(), arguments.from_text)
        except (CellExecutionError, ValueError, FileNotFoundError) as error:
            failed += 1
            print(f"{path}: not stored\n{error}", file=sys.stderr)
        else:
            print(f"{path}: {run['seconds']} s, {run['peak_mib']} MiB")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
