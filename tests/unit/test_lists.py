"""Lists of images are read whatever editor saved them; a line that can't be meant is named."""

from __future__ import annotations

import csv
import os
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeptransfer.domains.lists import listed_samples

NAMES = ("0.png", "1 b.png", "sub/2.png", "a,b;c.png", "ü.png", "#5.png", "it's.png")
LABELS = (3, 0, 4, 3, 0, 4, 0)


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def read_raw(folder, content, classes=None):
    listing = folder / "list.txt"
    listing.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return listed_samples(folder, listing, classes)


def read(folder, content, classes=None):
    """The class of each file by its name."""
    samples, names = read_raw(folder, content, classes)
    return {os.path.relpath(path, folder): names[label] for path, label in samples}


EXPECTED = {name: str(label) for name, label in zip(NAMES, LABELS, strict=True)}


# As editors and table programs save them


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n", " \n", "\t\r\n\r\n"])
@pytest.mark.parametrize("between", [" ", "\t", ",", ";", ", ", " ; ", "   ", "\t\t", " \t"])
@pytest.mark.parametrize("quote", ["{}", '"{}"', "'{}'"])
def test_separators_line_ends_and_quotation_marks(folder, between, end, quote):
    names = [name for name in NAMES if quote != "'{}'" or "'" not in name]
    lines = [f"{quote.format(name)}{between}{quote.format(EXPECTED[name])}{end}" for name in names]
    assert read(folder, "".join(lines)) == {name: EXPECTED[name] for name in names}
    assert read(folder, "".join(lines).rstrip()) == {name: EXPECTED[name] for name in names}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings_of_editors(folder, encoding):
    text = "".join(f"{name} {label}\r\n" for name, label in EXPECTED.items())
    assert read(folder, text.encode(encoding)) == EXPECTED
    if encoding == "utf-16":
        assert read(folder, b"\xfe\xff" + text.encode("utf-16-be")) == EXPECTED


def test_comments_blank_lines_and_headings_are_passed_over(folder):
    text = "# my photographs\n\nFile_Name,label\n0.png,3\n  \n  # with a space\n1 b.png,0\n#5.png,4\n#9.png 1\n"
    assert read(folder, text) == {"0.png": "3", "1 b.png": "0", "#5.png": "4"}


@pytest.mark.parametrize(
    "line", ["sub\\2.png 4", "./sub/2.png 4", ".\\sub\\2.png\t4", "sub//2.png 4", "{}/sub/2.png 4"]
)
def test_paths_as_people_write_them(folder, line):
    assert read(folder, line.format(folder)) == {"sub/2.png": "4"}


def test_either_form_of_unicode_finds_the_file(folder):
    for form in ("NFC", "NFD"):
        (found,) = read(folder, unicodedata.normalize(form, "ü.png café"))
        assert os.path.samefile(folder / found, folder / "ü.png")
        assert read(folder, unicodedata.normalize(form, "0.png café")) == {"0.png": "café"}


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.text(
            st.characters(blacklist_categories=("C",), blacklist_characters="/\\\u2028\u2029"), min_size=1, max_size=12
        )
        .map(str.strip)
        .filter(lambda name: name not in ("", ".", "..") and len(name.encode()) < 100),
        st.integers(0, 99),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([",", ";", "\t"]),
)
def test_what_a_table_program_writes_is_read_back(records, delimiter):
    """Whatever the names hold: quotation marks, separators, spaces, signs of comments, any letters."""
    with tempfile.TemporaryDirectory() as folder:
        for name in records:
            Path(folder, f"{name}.png").write_bytes(b"")
        listing = Path(folder, "list")
        with listing.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows((f"{name}.png", label) for name, label in records.items())
        samples, classes = listed_samples(Path(folder), listing)
    assert [(Path(path).stem, int(classes[label])) for path, label in samples] == list(records.items())


# Labels


def test_numbers_are_classes_in_their_order(folder):
    samples, classes = read_raw(folder, "0.png 10\n1 b.png 9\nsub/2.png 2.0\nü.png +9\n#5.png 009\n")
    assert classes == ("2", "9", "10")
    assert [label for _, label in samples] == [2, 1, 0, 1, 1]


def test_words_are_classes_in_the_order_of_the_alphabet(folder):
    samples, classes = read_raw(folder, '0.png,mug\n1 b.png,"alarm clock"\nsub/2.png, desk lamp \n')
    assert classes == ("alarm clock", "desk lamp", "mug")
    assert [label for _, label in samples] == [2, 0, 1]
    assert read_raw(folder, '0.png "alarm clock"\n1 b.png mug')[1] == ("alarm clock", "mug")


def test_known_classes_are_meant_by_number(folder):
    samples, classes = read_raw(folder, "0.png 2\n1 b.png 0.0\n", "abc")
    assert (classes, [label for _, label in samples]) == (("a", "b", "c"), [2, 0])


@pytest.mark.parametrize(
    ("text", "classes", "message"),
    [
        ("0.png 1\n1 b.png -1\n", None, "line 2: label '-1' is not a whole number from 0 on"),
        ("0.png 1\n\n1 b.png 1.5\n", None, "line 3: label '1.5' is not a whole number"),
        ("0.png -1\n1 b.png 2\n", None, "line 1: label '-1' is not a whole number"),
        ("0.png 1\n1 b.png mug\n", None, "line 2: label 'mug' is not a whole number"),
        ("0.png mug\n1 b.png 1\n", None, "line 2: label '1' is a number, where that of line 1 is a word"),
        ("0.png 1\n1 b.png nan\n", None, "line 2: label 'nan' is not a whole number"),
        ("0.png 1\n1 b.png 1e0\n", None, "line 2: label '1e0' is not a whole number"),
        ("0.png seven\n", "0123456789", "line 1: label 'seven' is not a whole number"),
        ("0.png 1\n1 b.png 10\n", "0123456789", "line 2: label '10' is not below 10, the number of classes"),
        ("0.png 1\n1 b.png -1\n", "0123456789", "line 2: label '-1'"),
        ("0.png 1\n0.png 2\n", None, r"line 2: .*0\.png is of class '2', but of '1' in line 1"),
        ("0.png 1\ngone.png 2\n", None, "line 2: there is no file 'gone.png' in"),
        ("0.png 1\n1 b.png\n", None, "line 2: there is no file '1' in"),
        ("0.png 1\nsub 2\n", None, "line 2: there is no file 'sub' in"),
        ("0.png\n", None, r"line 1: '0\.png' is not an image and a label"),
        ("0.png 1 cat\n", None, "line 1: there is no file '0.png 1' in"),
        ("0.png 1\nimage label\n", None, "line 2: there is no file 'image' in"),
        ("", None, "it has no line with an image and a label"),
        ("# nothing\n\n", None, "it has no line with an image and a label"),
        ("image,label\n", None, "it has no line with an image and a label"),
    ],
)
def test_line_that_cannot_be_meant_is_named(folder, text, classes, message):
    with pytest.raises(ValueError, match=rf"list\.txt can't be read[,:] {message}"):
        read(folder, text, classes)


@pytest.mark.parametrize("content", [b"0.png 1\n\xfcbel.png 2\n", b"0.png 1\n\x89PNG\r\n\x1a\n" + bytes(9) + b"\xff"])
def test_file_that_is_no_text_is_named(folder, content):
    with pytest.raises(ValueError, match=r"list\.txt can't be read, line 2: it is not text in UTF-8: save it as UTF-8"):
        read(folder, content)


def test_list_that_is_gone_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.txt can't be read \(FileNotFoundError"):
        listed_samples(tmp_path, tmp_path / "gone.txt")
