"""The comparer of notebook outputs: what must fail fails, what may move passes."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nbformat
import numpy as np
import pytest
from notebook_comparison import GLUED, WIDGET_VIEW, Tolerance, differences
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
MEASURED = {"why": "measured"}


def text(words: str, name: str = "stdout") -> dict[str, Any]:
    return {"output_type": "stream", "name": name, "text": words}


def shown(data: dict[str, Any], metadata: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"output_type": "display_data", "data": data, "metadata": metadata or {}}


def png(shift: int = 0, noise: float = 0.0, size: tuple[int, int] = (120, 90), blank: bool = False) -> str:
    """A white picture with a black square, moved by ``shift`` pixels."""
    pixels = np.full((size[1], size[0], 3), 255.0)
    if not blank:
        pixels[30:60, 30 + shift : 60 + shift] = 0
    pixels += noise * np.random.default_rng(0).standard_normal(pixels.shape)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return base64.encodebytes(file.getvalue()).decode()


def html(*pictures: str) -> str:
    images = "".join(f'<img src="data:image/png;base64,{"".join(p.split())}" alt="a square">' for p in pictures)
    return f"<figure>{images}<output>0.5</output></figure>"


def agree(stored: dict[str, Any], computed: dict[str, Any], **tolerance: Any) -> bool:
    return not differences([stored], [computed], Tolerance.of({"tolerance": tolerance} if tolerance else {}))


@pytest.mark.parametrize(
    ("stored", "computed"),
    [
        ("MMD² = 0.12345678", "MMD² = 0.12345679"),
        ("p = 1.2345e-08", "p = 1.2346e-08"),
        ("loss 2.7182818284", "loss 2.7182818291"),
        ("x = 3e-17", "x = -1e-16"),
        ("[ 0.0000, 1.5]", "[-0.0000, 1.5]"),
        ("a   9.9999\nb   1.0000", "a  10.0000\nb   1.0000"),
        ("Δ = −0.50001", "Δ = −0.50002"),
        ("accuracy 0.8723", "accuracy 0.8724"),
        ("x = 72", "x = 72.000001"),
    ],
)
def test_rounding_noise_passes(stored: str, computed: str) -> None:
    assert agree(text(stored), text(computed))


@pytest.mark.parametrize(
    ("stored", "computed"),
    [
        ("MMD² = 0.1234", "MMD² = 0.1236"),
        ("MMD² = 0.1234", "MMD² = -0.1234"),
        ("accuracy 87.5 %", "accuracy 87.6 %"),
        ("p = 0.01", "p = 0.02"),
        ("3 seeds", "4 seeds"),
        ("1797 images", "1798 images"),
        ("10000000 steps", "10000001 steps"),
        ("ratio 20.123456", "ratio 20.2"),
        ("1,797 images", "1,796 images"),
        ("loss 0.5", "loss nan"),
        ("loss 0.5", "loss inf"),
        ("loss 1.0", "loss 1.0e3"),
        ("True", "False"),
        ("JAN beats DAN", "DAN beats JAN"),
        ("block2 0.5", "block3 0.5"),
        ("conv2d", "conv3d"),
        ("colour #0e1234", "colour #0e5678"),
        ("0.1 0.2", "0.1 0.2 0.3"),
        ("one line", "one line\nand one more"),
        ("one line", ""),
    ],
)
def test_changed_number_or_word_fails(stored: str, computed: str) -> None:
    assert not agree(text(stored), text(computed))


@pytest.mark.parametrize("mime", ["text/html", "image/svg+xml", "text/latex", "text/plain", GLUED + "text/plain"])
def test_every_text_kind_is_compared(mime: str) -> None:
    assert agree(shown({mime: '<td x="0.1">0.12345678</td>'}), shown({mime: '<td x="0.1">0.12345679</td>'}))
    assert not agree(shown({mime: '<td x="0.1">0.1234</td>'}), shown({mime: '<td x="0.1">0.1334</td>'}))
    assert not agree(shown({mime: '<td x="0.1">0.1234</td>'}), shown({mime: '<th x="0.1">0.1234</th>'}))


def test_json_is_compared_within_tolerance() -> None:
    kind = "application/json"
    assert agree(shown({kind: {"a": [1.23456789, "x"]}}), shown({kind: {"a": [1.23456788, "x"]}}))
    assert not agree(shown({kind: {"a": [1.2, "x"]}}), shown({kind: {"a": [1.3, "x"]}}))
    assert not agree(shown({kind: {"a": [1.2, "x"]}}), shown({kind: {"b": [1.2, "x"]}}))


@pytest.mark.parametrize("mime", ["image/png", GLUED + "image/png"])
def test_pictures_are_compared_by_what_they_show(mime: str) -> None:
    assert agree(shown({mime: png()}), shown({mime: png(noise=1.0)}))
    assert not agree(shown({mime: png()}), shown({mime: png(shift=1)}))
    assert not agree(shown({mime: png()}), shown({mime: png(size=(121, 90))}))
    assert not agree(shown({mime: png()}), shown({mime: png(blank=True)}))


def test_changed_frame_inside_html_fails() -> None:
    stored = shown({"text/html": html(png(), png(shift=5))})
    assert agree(stored, shown({"text/html": html(png(noise=1.0), png(shift=5))}))
    assert not agree(stored, shown({"text/html": html(png(), png(shift=6))}))
    assert not agree(stored, shown({"text/html": html(png())}))
    assert not agree(stored, shown({"text/html": html(png(), png(shift=5)).replace("0.5", "0.6")}))


@pytest.mark.parametrize("encoded", [True, False])
def test_svg_inside_a_data_uri_is_compared_as_svg(encoded: bool) -> None:
    def frame(number: str) -> dict[str, Any]:
        svg = f"<svg><text>{number}</text></svg>"
        content = ";base64," + base64.b64encode(svg.encode()).decode() if encoded else "," + quote(svg)
        return shown({"text/html": f'<img src="data:image/svg+xml{content}" alt="a number">'})

    assert agree(frame("0.123456"), frame("0.123457"))
    assert not agree(frame("0.123456"), frame("0.2"))
    assert not agree(frame("0.123456"), frame("none"))


def test_missing_extra_or_reordered_outputs_fail() -> None:
    one, two = text("one"), shown({"text/plain": "two"})
    exact = Tolerance()
    assert not differences([one, two], [one, two], exact)
    assert differences([one, two], [one], exact)
    assert differences([one], [one, two], exact)
    assert differences([], [one], exact)
    assert differences([one, two], [two, one], exact)


def test_kind_of_output_is_compared() -> None:
    assert not agree(text("one"), text("one", name="stderr"))
    assert not agree(shown({"text/plain": "one"}), {**shown({"text/plain": "one"}), "output_type": "execute_result"})
    assert not agree(shown({"text/plain": "one", "image/png": png()}), shown({"text/plain": "one"}))


def test_name_under_which_a_value_is_glued_is_compared() -> None:
    stored, computed = (shown({"text/plain": "1"}, {"scrapbook": {"name": name}}) for name in ("mmd", "jmmd"))
    assert not agree(stored, computed)


def test_widget_beside_html_is_left_out_but_alone_it_fails() -> None:
    stored = shown({"text/html": "<b>x</b>"})
    view = {WIDGET_VIEW: {"model_id": "4f1c"}}
    assert agree(stored, shown({"text/html": "<b>x</b>", **view}))
    assert not agree(stored, shown(view))
    assert not agree(shown(view), shown({WIDGET_VIEW: {"model_id": "a81b"}}))


def test_widened_tolerance_holds_for_its_cell_and_no_further() -> None:
    stored = text("JAN: 93.4 % of 797 images")
    assert agree(stored, text("JAN: 95.1 % of 797 images"), abs=2.5, **MEASURED)
    assert not agree(stored, text("JAN: 96.1 % of 797 images"), abs=2.5, **MEASURED)
    assert not agree(stored, text("JAN: 93.4 % of 798 images"), abs=2.5, **MEASURED)
    assert agree(stored, text("JAN: 93.4 % of 798 images"), abs=2.5, integers=True, **MEASURED)
    assert not agree(stored, text("DAN: 93.4 % of 797 images"), abs=2.5, integers=True, **MEASURED)
    assert agree(text("200.0"), text("210.0"), rel=0.06, **MEASURED)


def test_trained_pictures_are_compared_by_size_and_ink() -> None:
    stored = shown({"image/png": png()})
    trained = {"pictures": "trained", **MEASURED}
    assert agree(stored, shown({"image/png": png(shift=20)}), **trained)
    assert agree(stored, shown({"image/png": png(size=(125, 90))}), **trained)
    assert not agree(stored, shown({"image/png": png(size=(180, 90))}), **trained)
    assert not agree(stored, shown({"image/png": png(blank=True)}), **trained)
    svg = '<svg viewBox="0 0 {} 90"><path d="M 0 {}"/></svg>'
    assert agree(shown({"image/svg+xml": svg.format(100, 1)}), shown({"image/svg+xml": svg.format(103, 7)}), **trained)
    assert not agree(
        shown({"image/svg+xml": svg.format(100, 1)}), shown({"image/svg+xml": svg.format(140, 1)}), **trained
    )
    assert not agree(
        shown({"image/svg+xml": svg.format(100, 1)}), shown({"image/svg+xml": '<svg viewBox="0 0 100 90"/>'}), **trained
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"abs": 1.0}, "needs a reason"),
        ({"abs": 1.0, "why": " "}, "needs a reason"),
        ({"absolute": 1.0, **MEASURED}, "unknown key 'absolute'"),
        ({"pictures": "none", **MEASURED}, "'same' or 'trained'"),
    ],
)
def test_tolerance_without_a_reason_or_meaning_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tolerance.of({"tolerance": given})


def test_message_shows_both_sides() -> None:
    (message,) = differences([text("MMD² = 0.25")], [text("MMD² = 0.75")], Tolerance())
    assert "0.25" in message
    assert "0.75" in message


def test_nbval_uses_the_comparer(tmp_path: Path) -> None:
    """A whole run: the jittered cell passes, the changed one and the changed picture fail; the user's settings stay out."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    show = "from IPython.display import display; display({'image/png': %r}, raw=True)"
    for count, (source, stored) in enumerate(
        [
            ("print(1 / 3)", nbformat.v4.new_output("stream", name="stdout", text="0.33333333333333337\n")),
            ("print(1 / 3)", nbformat.v4.new_output("stream", name="stdout", text="0.3433333333333333\n")),
            (show % png(), nbformat.v4.new_output("display_data", {"image/png": png(shift=3)})),
            ("import os; print(os.environ['TZ'])", nbformat.v4.new_output("stream", name="stdout", text="UTC\n")),
        ],
        start=1,
    ):
        notebook.cells.append(nbformat.v4.new_code_cell(source, outputs=[stored], execution_count=count))
    path = tmp_path / "trial.ipynb"
    nbformat.write(notebook, path)
    paths = [ROOT, ROOT / "scripts", ROOT / "tests" / "support"]
    options = ["-p", "conftest", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env", "-rA", "--color=no"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, path.name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "TZ": "Asia/Tokyo"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "PASSED trial.ipynb::Cell 0" in run.stdout
    assert "FAILED trial.ipynb::Cell 1" in run.stdout
    assert "number 0.3433333333333333 stored, 0.3333333333333333 computed" in run.stdout
    assert "FAILED trial.ipynb::Cell 2" in run.stdout
    assert "picture differs by RMS" in run.stdout
    assert "PASSED trial.ipynb::Cell 3" in run.stdout
