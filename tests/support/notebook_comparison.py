"""Compare the outputs of an executed notebook cell with the stored ones.

nbval compares strings exactly and pictures not at all. Here instead, output by output and in order:

* a number in text, HTML, SVG or JSON may differ by rounding noise (see :class:`Tolerance`), everything else not at all;
* pictures, also those in ``data:`` URIs and those that ``glue`` stores, are decoded and compared by size and RMS.

A cell whose result is *trained* states a measured tolerance in its metadata, with the reason::

    "tolerance": {"abs": 2.5, "why": "spread over 1 and 2 threads and AVX2 was 0.8 points, times three"}

``rel`` and ``abs`` widen the numbers (whole numbers only with ``"integers": true``), ``"pictures": "trained"`` compares
pictures by size and non-blankness.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image

Output = Mapping[str, Any]  # a cell's output in the notebook format

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
GLUED = "application/papermill.record/"

# A number stands alone: not the 2 of "conv2d", not a part of a hex colour. Blanks before it belong to it, so that a
# minus sign or one digit more may move it within its column.
_NUMBER = re.compile(r"[ \t]*(?<![\w.#])([-+−]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")
_DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)((?:;[\w=.+-]+)*),([A-Za-z0-9+/=%_.!~*'();:@&$,?#-]*)")


@dataclass(frozen=True)
class Tolerance:
    """How far a recomputed output may be from the stored one."""

    rel: float = 1e-6
    abs: float = 1e-8
    integers: bool = False  # whether rel and abs hold for whole numbers too; else these are exact
    pictures: str = "same"  # or "trained": size and non-blankness only
    rms: float = 0.005  # of intensities in [0, 1]; one changed digit in a title is about 0.01
    why: str = ""

    def __post_init__(self) -> None:
        if self.pictures not in ("same", "trained"):
            raise ValueError(f"tolerance: pictures is {self.pictures!r}, it must be 'same' or 'trained'")
        if not self.why.strip() and any(getattr(self, field.name) != field.default for field in fields(self)):
            raise ValueError("tolerance: a widened tolerance needs a reason, say what was measured under the key 'why'")

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Tolerance:
        """Read the tolerance of a cell from its metadata."""
        given = dict(metadata.get("tolerance", {}))
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(given) - set(known)):
            raise ValueError(f"tolerance: unknown key {unknown[0]!r}, known are {known}")
        return cls(**given)

    def accepts(self, stored: str, computed: str) -> bool:
        """Whether two printed numbers agree."""
        stored, computed = stored.replace("−", "-"), computed.replace("−", "-")
        a, b = Decimal(stored), Decimal(computed)
        if _is_whole(stored) and _is_whole(computed) and not self.integers:
            return a == b
        allowed = Decimal(self.abs) + Decimal(self.rel) * max(abs(a), abs(b))
        # Rounding noise may flip the last printed digit: one unit of it passes where it is at most a thousandth of all.
        if max(_significant_digits(stored), _significant_digits(computed)) >= 4:
            allowed = max(allowed, min(_last_place(stored), _last_place(computed)))
        return abs(a - b) <= allowed


def _is_whole(number: str) -> bool:
    return number.lstrip("+-").isdigit()


def _significant_digits(number: str) -> int:
    return 0 if _is_whole(number) else len(Decimal(number).as_tuple().digits)


def _last_place(number: str) -> Decimal:
    return Decimal(0) if _is_whole(number) else Decimal((0, (1,), int(Decimal(number).as_tuple().exponent)))


def differences(stored: Sequence[Output], computed: Sequence[Output], tolerance: Tolerance) -> list[str]:
    """List what differs between two lists of cell outputs, nothing if they agree.

    Parameters
    ----------
    stored, computed
        Outputs in the notebook format, streams already merged.
    tolerance
        See :class:`Tolerance`.

    Returns
    -------
    list of str
        One message per difference.
    """
    if len(stored) != len(computed):
        return [f"{len(stored)} outputs stored ({_kinds(stored)}), {len(computed)} computed ({_kinds(computed)})"]
    found = []
    for place, (old, new) in enumerate(zip(stored, computed, strict=True)):
        old_parts, new_parts = _parts(old), _parts(new)
        if set(old_parts) != set(new_parts):
            found.append(f"output {place}: stored as {sorted(old_parts)}, computed as {sorted(new_parts)}")
            continue
        for kind in old_parts:
            messages = _compare(kind, old_parts[kind], new_parts[kind], tolerance)
            found += [f"output {place}, {kind}: {message}" for message in messages]
    return found


def _kinds(outputs: Sequence[Output]) -> str:
    return "; ".join(", ".join(_parts(output)) for output in outputs) or "none"


def _parts(output: Output) -> dict[str, Any]:
    """Everything of an output that is compared, by kind."""
    if output["output_type"] == "stream":
        return {f"stream {output['name']}": output["text"]}
    if output["output_type"] == "error":
        return {"error": f"{output['ename']}: {output['evalue']}"}
    parts = dict(output["data"])
    if "text/html" in parts:  # what is stored and read; a live widget beside it carries a random id
        parts.pop(WIDGET_VIEW, None)
    if output.get("metadata"):
        parts["metadata"] = output["metadata"]
    return {f"{output['output_type']} {kind}": value for kind, value in parts.items()}


def _compare(kind: str, stored: Any, computed: Any, tolerance: Tolerance) -> list[str]:
    mime = kind.split(" ", 1)[1].removeprefix(GLUED) if " " in kind else kind
    if not (isinstance(stored, str) and isinstance(computed, str)):
        stored, computed = (json.dumps(value, sort_keys=True, indent=1) for value in (stored, computed))
    if mime in ("image/png", "image/jpeg", "image/gif", "image/webp"):
        try:
            return _compare_pictures(_from_base64(stored), _from_base64(computed), tolerance)
        except binascii.Error as error:
            return [f"not base64: {error}"]
    if mime == "image/svg+xml":
        return _compare_svg(stored, computed, tolerance)
    return _compare_text(stored, computed, tolerance)


def _from_base64(text: str) -> bytes:
    return base64.b64decode("".join(text.split()), validate=True)


def _compare_text(stored: str, computed: str, tolerance: Tolerance) -> list[str]:
    stored, stored_uris = _take_out_data_uris(stored)
    computed, computed_uris = _take_out_data_uris(computed)
    found = []
    old_words, new_words = _NUMBER.split(stored), _NUMBER.split(computed)  # words at even places, numbers at odd ones
    if old_words[::2] != new_words[::2]:
        found.append(_first_difference(stored, computed))
    else:
        wrong = [(a, b) for a, b in zip(old_words[1::2], new_words[1::2], strict=True) if not tolerance.accepts(a, b)]
        found += [f"number {a} stored, {b} computed" for a, b in wrong[:5]]
        if len(wrong) > 5:
            found.append(f"and {len(wrong) - 5} more numbers")
    if len(stored_uris) == len(computed_uris):  # else the text differs, which is said above
        for place, ((mime, old), (_, new)) in enumerate(zip(stored_uris, computed_uris, strict=True)):
            if mime == "image/svg+xml":
                messages = _compare_svg(old.decode(), new.decode(), tolerance)
            elif mime.startswith("image/"):
                messages = _compare_pictures(old, new, tolerance)
            else:
                messages = [] if old == new else ["content differs"]
            found += [f"data URI {place} ({mime}): {message}" for message in messages]
    return found


def _take_out_data_uris(text: str) -> tuple[str, list[tuple[str, bytes]]]:
    uris: list[tuple[str, bytes]] = []

    def take(match: re.Match[str]) -> str:
        mime, options, content = match.groups()
        raw = unquote_to_bytes(content)
        try:
            uris.append((mime, base64.b64decode(raw, validate=True) if options.endswith(";base64") else raw))
        except binascii.Error:
            return match.group()  # not what it says: compared as the text it is
        return f"data:{mime}{options},"

    return _DATA_URI.sub(take, text), uris


def _first_difference(stored: str, computed: str) -> str:
    """Show both texts around the first place where their words differ."""
    old, new = (_NUMBER.sub("#", text) for text in (stored, computed))
    same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    start = max(0, same - 30)
    return f"text (numbers as #) {old[start : start + 100]!r} stored, {new[start : start + 100]!r} computed"


def _pixels(picture: bytes) -> np.ndarray:
    """All frames of a picture, ``(frames, height, width, 4)`` in [0, 1]."""
    with Image.open(io.BytesIO(picture)) as image:
        frames = []
        for frame in range(getattr(image, "n_frames", 1)):
            image.seek(frame)
            frames.append(np.asarray(image.convert("RGBA"), dtype=np.float64) / 255)
    return np.stack(frames)


def _compare_pictures(stored: bytes, computed: bytes, tolerance: Tolerance) -> list[str]:
    try:
        old, new = _pixels(stored), _pixels(computed)
    except OSError as error:
        return [f"not a picture: {error}"]
    if tolerance.pictures == "trained":
        found = _compare_sizes(old.shape, new.shape)
        return found + ([] if new[..., :3].std() > 0.01 else ["the computed picture is blank"])
    if old.shape != new.shape:
        return [f"picture of shape {old.shape} stored, {new.shape} computed"]
    rms = float(np.sqrt(np.mean((old - new) ** 2)))
    return [] if rms <= tolerance.rms else [f"picture differs by RMS {rms:.4f}, allowed {tolerance.rms}"]


def _compare_svg(stored: str, computed: str, tolerance: Tolerance) -> list[str]:
    if tolerance.pictures == "same":
        return _compare_text(stored, computed, tolerance)
    boxes = [re.search(r"viewBox=[\"']([-\d. ]+)[\"']", text) for text in (stored, computed)]
    if boxes[0] is None or boxes[1] is None:
        return ["a trained SVG picture needs a viewBox to be compared"]
    old, new = ([float(number) for number in box[1].split()] for box in boxes if box)
    found = _compare_sizes(old, new)
    drawn = len(re.findall(r"<(?:path|use|circle|rect|line|text|polyline|polygon|image)\b", computed))
    return found + ([] if drawn else ["the computed picture is blank"])


def _compare_sizes(old: Sequence[float], new: Sequence[float]) -> list[str]:
    """A trained curve moves tick labels, and with them the tight border: a tenth is allowed."""
    if len(old) == len(new) and all(abs(a - b) <= 0.1 * max(a, b) for a, b in zip(old, new, strict=True)):
        return []
    return [f"picture of size {tuple(old)} stored, {tuple(new)} computed"]
