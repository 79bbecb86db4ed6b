"""Lists of images: a text file with a file's name and its label in each line, as any editor saves it."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unicodedata import normalize

from deeptransfer.domains.images import reading

# A line's name and label, by what stands between them; the first of these for which the name is a file counts.
LINES = [
    re.compile(rf"\s*(?P<name>.+?)\s*{mark}\s*(?P<label>\"[^\"]*\"|'[^']*'|[^{mark}]+?)\s*")
    for mark in (r"\t", ";", ",", r"\s")
]
HEADINGS = {"image", "images", "img", "path", "file", "filename", "filepath", "imagepath", "imagename", "name"}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
WHOLE = re.compile(r"\+?(\d+)(\.0*)?")


def listed_samples(
    folder: Path, listing: Path, classes: Sequence[str] | None = None
) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    """Samples and classes of a text file with ``name label`` in each line, names relative to ``folder``.

    White space, a tab, a semicolon or a comma stands between them, and quotation marks around them if need be. Names
    may hold white space, and backslashes for slashes. Empty lines, comments (``# …``) and a first line of headings are
    passed over. The file is in UTF-8, or in UTF-16.

    Parameters
    ----------
    folder, listing : Path
    classes : sequence of str, optional
        What the numbers 0, 1, … mean. Without it the classes are the labels that occur: numbers in their order, or
        words in that of the alphabet.

    Raises
    ------
    ValueError
        If a file is not there, or has two labels; if a label is no whole number from 0 on where numbers are expected,
        or has no class; if the list is empty, or no text. The message names list and line.
    """
    found: dict[str, tuple[int, str]] = {}  # line and label of each file
    for number, path, label in _records(folder, listing):
        before = found.setdefault(path, (number, label))
        if before[1] != label:
            raise _wrong(listing, number, f"{path} is of class {label!r}, but of {before[1]!r} in line {before[0]}")
    if not found:
        raise ValueError(f"{listing} can't be read: it has no line with an image and a label")
    first_line, first_label = next(iter(found.values()))
    if classes is None and not NUMBER.fullmatch(first_label):
        for number, label in found.values():
            if NUMBER.fullmatch(label):
                raise _wrong(listing, number, f"label {label!r} is a number, where that of line {first_line} is a word")
        return _indexed({path: label for path, (_, label) in found.items()})
    numbers = {path: _number(listing, *record, classes) for path, record in found.items()}
    return _indexed(numbers) if classes is None else (list(numbers.items()), tuple(classes))


def _indexed(labels: Mapping[str, Any]) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    """Samples and classes, where the classes are the labels that occur."""
    index = {label: k for k, label in enumerate(sorted(set(labels.values())))}
    return [(path, index[label]) for path, label in labels.items()], tuple(map(str, index))


def _number(listing: Path, line: int, label: str, classes: Sequence[str] | None) -> int:
    whole = WHOLE.fullmatch(label)
    if not whole:
        raise _wrong(listing, line, f"label {label!r} is not a whole number from 0 on")
    if classes is not None and int(whole[1]) >= len(classes):
        raise _wrong(listing, line, f"label {label!r} is not below {len(classes)}, the number of classes")
    return int(whole[1])


def _records(folder: Path, listing: Path) -> Iterator[tuple[int, str, str]]:
    """Number, file and label of each line that has them."""
    first = True
    for number, line in enumerate(re.split(r"\r\n|\r|\n", _text(listing)), start=1):
        matches = [match for pattern in LINES if (match := pattern.fullmatch(line))]
        files = [(path, match) for match in matches if (path := _file(folder, match["name"]))]
        if files:
            path, match = files[0]
            yield number, path, normalize("NFC", _plain(match["label"]))
        elif line.strip() and not line.lstrip().startswith("#"):
            heading = first and matches and _plain(matches[0]["name"]).lower().replace("_", "") in HEADINGS
            if not matches:
                raise _wrong(listing, number, f"{line.strip()!r} is not an image and a label")
            if not heading:
                raise _wrong(listing, number, f"there is no file {matches[0]['name']!r} in {folder}")
        first = first and not files


def _file(folder: Path, name: str) -> str | None:
    """The file that a list means by ``name``: quoted or not, with slashes of any system, in any Unicode form."""
    for quoted in (name, _plain(name)):
        for slashed in (quoted, quoted.replace("\\", "/")):
            for form in (slashed, normalize("NFC", slashed), normalize("NFD", slashed)):
                if os.path.isfile(path := os.path.join(folder, form)):
                    return path
    return None


def _plain(text: str) -> str:
    """Without the quotation marks that a table program puts around a text."""
    mark = text[0]
    return text[1:-1].replace(2 * mark, mark) if mark in "\"'" and len(text) > 1 and text[-1] == mark else text


def _text(listing: Path) -> str:
    with reading(listing):
        data = listing.read_bytes()
    encoding = "utf-8"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in data[:2]:  # UTF-16 without a mark, as letters and digits show
        encoding = "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise _wrong(listing, line, f"it is not text in {encoding.upper()}: save it as UTF-8") from None
    return text.replace("\ufeff", "")  # the mark that some editors put first


def _wrong(listing: Path, line: int, what: str) -> ValueError:
    return ValueError(f"{listing} can't be read, line {line}: {what}")
