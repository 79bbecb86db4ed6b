"""Folders as people have them: levels, links, what systems leave behind, other data sets, and one's own by path."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
import torch
from PIL import Image

from deeptransfer.domains import DomainPair, load_domain, real
from deeptransfer.domains.download import load_sources
from deeptransfer.domains.layout import class_samples

CLASSES = ("bike", "mug", "pen")


def photograph(path, colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 8), (colour, 7, 7)).save(path)


def domain_folder(folder, classes=CLASSES, count=3):
    for k, name in enumerate(classes):
        for i in range(count):
            photograph(folder / name / f"{i}.png", 10 * k + i)
    return folder


def files(domain):
    return sorted(Path(path).name for path, _ in domain.samples)


# Levels


@pytest.mark.parametrize("below", ["data", "images", "data/images", "a/b/c", "images/data"])
@pytest.mark.parametrize("name", ["office-home/Art", "own"])
def test_a_level_too_many_is_stepped_over(tmp_path, name, below):
    domain_folder(tmp_path / name / below)
    (tmp_path / name / "readme.txt").write_text("hello")
    (tmp_path / name / ".git").mkdir()
    domain = load_domain(name, "all", root=tmp_path)
    assert (domain.classes, len(domain)) == (CLASSES, 9)


def test_folders_inside_a_class_belong_to_it(tmp_path):
    """Of every class, or in every class of the names that splits have."""
    domain_folder(tmp_path / "one")
    photograph(tmp_path / "one/mug/more/deeper/x.png")
    assert len(load_domain("one", "all", root=tmp_path)) == 10
    for name in CLASSES:
        for part in ("train", "test"):
            photograph(tmp_path / "two" / name / part / "0.png")
    domain = load_domain("two", "all", root=tmp_path)
    assert (domain.classes, len(domain)) == (CLASSES, 6)


def test_single_class_is_refused_with_what_was_found(tmp_path):
    folder = domain_folder(tmp_path / "office-home/Art", ("bike",))
    with pytest.raises(ValueError, match=r"Art has no folder for each class.* 'bike', with 3 images: .*two classes"):
        load_domain("office-home/Art", root=tmp_path)
    photograph(folder / "bike/near/0.png")
    with pytest.raises(ValueError, match=r"'bike', with 4 images and the folders 'near'"):
        load_domain("office-home/Art", root=tmp_path)
    with pytest.raises(ValueError, match=r"bike has no folder for each class.* 3 images: .*two classes"):
        class_samples(domain_folder(tmp_path / "other", ("bike",)) / "bike")


@pytest.mark.parametrize("levels", [("train", "test"), ("Art", "Clipart"), ("a", "b", "c")])
def test_level_that_is_no_class_is_refused(tmp_path, levels):
    """Each of them holds the classes: reading them as two classes would give a number that means nothing."""
    for level in levels:
        domain_folder(tmp_path / "own" / level)
    with pytest.raises(ValueError, match=rf"own holds '.*below them are the folders 'bike', .*such as .*{min(levels)}"):
        load_domain("own", root=tmp_path)


def test_images_beside_the_classes_are_no_class(tmp_path):
    photograph(domain_folder(tmp_path / "own") / "cover.png")
    assert load_domain("own", "all", root=tmp_path).classes == CLASSES


# What is left behind


@pytest.mark.parametrize(
    "folder",
    [
        *(".ipynb_checkpoints", ".thumbnails", "__MACOSX", "@eaDir", "#recycle", "lost+found", ".git", "$RECYCLE.BIN"),
        *("System Volume Information", ".Trash-1000", ".AppleDouble", ".Spotlight-V100", "@Recycle", "#snapshot"),
        *("RECYCLER", "Network Trash Folder", "__pycache__", ".@__thumb", "Temporary Items"),
    ],
)
@pytest.mark.parametrize("name", ["pacs/photo", "own"])
def test_folder_that_a_system_leaves_is_passed_over_at_every_depth(tmp_path, name, folder):
    place = domain_folder(tmp_path / name)
    photograph(place / "mug/deeper/x.png")
    for where in (place.parent, place, place / "mug", place / "mug/deeper"):
        photograph(where / folder / "bike/0.png")
        photograph(where / folder / "0.png")
    domain = load_domain(name, "all", root=tmp_path)
    assert (domain.classes, len(domain)) == (CLASSES, 10)


@pytest.mark.parametrize(
    "file",
    [
        *(".DS_Store", "._0.png", "Thumbs.db", "desktop.ini", "~$0.png", ".nfs0001.png", "9.png.part", "9.png~"),
        *(".0.png.Xa3", "9.png.crdownload", "Icon\r", ".~lock.0.png#", "notes.txt", "9"),
    ],
)
def test_file_that_is_no_image_is_passed_over(tmp_path, file):
    place = domain_folder(tmp_path / "own")
    for where in (tmp_path, place, place / "mug"):
        (where / file).write_bytes(b"")
    assert len(load_domain("own", "all", root=tmp_path)) == 9


@pytest.mark.parametrize("ending", ["PNG", "Jpg", "JPEG", "TIF", "gif", "jfif", "WebP"])
def test_every_image_counts(tmp_path, ending):
    place = domain_folder(tmp_path / "own")
    (place / "mug/0.png").rename(place / f"mug/9.{ending}")
    assert files(load_domain("own", "all", root=tmp_path)).count(f"9.{ending}") == 1


@pytest.mark.parametrize("ending", ["heic", "HEIF"])
def test_image_that_pillow_cannot_read_is_no_gap(tmp_path, ending):
    (domain_folder(tmp_path / "own") / f"mug/9.{ending}").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(ValueError, match=rf"mug/9\.{ending} can't be read: .*{ending.upper()}.*as PNG or JPEG"):
        load_domain("own", root=tmp_path)


# Links


def test_links_are_followed_but_not_back(tmp_path):
    place = domain_folder(tmp_path / "own")
    domain_folder(tmp_path / "elsewhere", ("cup",))
    (place / "cup").symlink_to(tmp_path / "elsewhere/cup")  # a class that lies elsewhere
    (place / "mug/9.png").symlink_to("0.png")
    for link in (place / "all", place / "mug/up", place / "mug/deep/loop", place / "mug/self"):
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(place if link.name in ("all", "up") else place / "mug")
    domain = load_domain("own", "all", root=tmp_path)
    assert domain.classes == ("bike", "cup", "mug", "pen")
    assert domain.labels.bincount().tolist() == [3, 3, 4, 3]


def test_folders_that_link_to_each_other_are_read_once(tmp_path):
    place = domain_folder(tmp_path / "own")
    for i, (one, other) in enumerate([("mug/a", "mug/b"), ("mug/b", "mug/a")]):
        photograph(place / one / f"{one[-1]}.png")
        (place / one / f"link{i}").symlink_to(place / other)
        (place / other).mkdir(exist_ok=True)
    assert load_domain("own", "all", root=tmp_path).labels.bincount().tolist() == [3, 5, 3]


@pytest.mark.parametrize("link", ["cup", "mug/9.png", "mug/deeper/9"])
def test_link_to_nowhere_is_named(tmp_path, link):
    path = domain_folder(tmp_path / "own") / link
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=rf"own/{link} is a link to nowhere"):
        load_domain("own", root=tmp_path)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(ValueError, match=rf"own/{link} is a link to nowhere"):
        load_domain("own", root=tmp_path)


def test_link_to_nowhere_beside_a_data_set_is_no_matter(tmp_path):
    domain_folder(tmp_path / "pacs/photo")
    for where in (tmp_path, tmp_path / "pacs"):
        (where / "old").symlink_to("gone")
    assert len(load_domain("pacs/photo", "all", root=tmp_path)) == 9


# Unicode


@pytest.mark.parametrize("name", ["office-home/{}", "{}"])
def test_one_name_in_two_forms_is_one_class(tmp_path, name):
    words = ("Café", "Öl", "Zebra", "杯子", "각")
    domains = []
    for part, form in (("Art", "NFC"), ("Clipart", "NFD")):
        domain_folder(tmp_path / name.format(part), [unicodedata.normalize(form, word) for word in words])
        domains.append(load_domain(name.format(part), "all", root=tmp_path, size=8))
    assert domains[0].classes == domains[1].classes == tuple(sorted(words))
    assert torch.equal(domains[0].labels, domains[1].labels)
    batch = DomainPair(*domains, 4, 0).batch(0)
    assert batch.xs.shape == batch.xt.shape == (4, 3, 8, 8)


def test_both_forms_in_one_folder_are_one_class(tmp_path):
    for form in ("NFC", "NFD"):
        domain_folder(tmp_path / "own", [unicodedata.normalize(form, "Café"), "mug"], count=2)
    domain = load_domain("own", "all", root=tmp_path)
    assert (domain.classes, domain.labels.tolist()) == (("Café", "mug"), [0] * 4 + [1] * 2)


# Another data set under a name


def test_folder_of_another_data_set_is_refused(tmp_path):
    root = tmp_path / "office_caltech_10"
    for part in ("amazon", "caltech", "dslr", "webcam"):
        domain_folder(root / part)
    with pytest.raises(ValueError, match=r"amazon belongs to office-caltech10, not to office31: .*root="):
        load_domain("office31/amazon", root=root)
    assert len(load_domain("office-caltech10/amazon", "all", root=root)) == 9


@pytest.mark.parametrize("folder", ["photographs", "office31"])
def test_domains_beside_it_tell_the_data_set(tmp_path, folder):
    """Whatever the folder is called, and if it is called wrongly."""
    for part in ("amazon", "caltech10", "dslr", "webcam"):
        domain_folder(tmp_path / folder / part)
    with pytest.raises(ValueError, match="belongs to office-caltech10, not to office31"):
        load_domain("office31/amazon", root=tmp_path if folder == "office31" else tmp_path / folder)


@pytest.mark.parametrize(
    ("name", "classes", "message"),
    [
        ("office31/amazon", "office-caltech10", "has the 10 classes of office-caltech10 .*not the 31 of office31"),
        ("office-caltech10/amazon", "office31", "has the 31 classes of office31"),
        ("pacs/photo", "visda2017", "has the 12 classes of visda2017"),
        ("visda2017/train", 345, r"has 345 classes .*visda2017 was published with 12"),
        ("office-home/Clipart", 345, r"has 345 classes .*office-home was published with 65"),
    ],
)
def test_classes_of_another_data_set_are_refused(tmp_path, name, classes, message):
    known = [f"{k:03}" for k in range(classes)] if isinstance(classes, int) else load_sources()[classes].classes
    domain_folder(tmp_path / name, known, count=1)
    with pytest.raises(ValueError, match=message):
        load_domain(name, root=tmp_path)


@pytest.mark.parametrize("name", [name for name in real.LOADERS if "/" in name])
def test_published_classes_are_the_data_sets_own(name):
    dataset = name.partition("/")[0]
    classes = load_sources()[dataset].classes
    published = {"office31": 31, "office-caltech10": 10, "office-home": 65, "pacs": 7, "visda2017": 12}
    assert len(set(classes)) == published[dataset]
    real.check_published(name, sorted(classes))
    real.check_published(name, sorted(classes)[:3])
    real.check_published(name, [word.upper().replace("_", " ") for word in classes])


def test_other_images_of_the_format_of_mnist_are_not_mnist(tmp_path):
    folder = tmp_path / "FashionMNIST/raw"
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(ValueError, match="belongs to fashionmnist, not to mnist"):
        load_domain("mnist", root=tmp_path / "FashionMNIST")
    with pytest.raises(ValueError, match="no mnist under"):
        load_domain("mnist", root=tmp_path)


# One's own, by path


@pytest.mark.parametrize("write", [str, Path, lambda p: f"{p}/", lambda p: f"{p}//", lambda p: f"{p}/mug/.."])
def test_own_folder_by_its_path(tmp_path, write):
    path = domain_folder(tmp_path / "my photos: 2024/source")
    domain = load_domain(write(path), "all", size=5)
    assert (domain.classes, len(domain), domain[0][0].shape) == (CLASSES, 9, (3, 5, 5))
    if write in (str, Path):
        assert domain.name == str(path)


def test_own_folder_by_the_home_folder_and_from_here(tmp_path, monkeypatch):
    domain_folder(tmp_path / "home/a/source")
    domain_folder(tmp_path / "data/a/target", count=4)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setenv("DEEPTRANSFER_DATA", "~/../data")
    monkeypatch.chdir(tmp_path / "home")
    for name, count, shown in [
        ("~/a/source", 9, "~/a/source"),
        ("a/source", 9, "a/source"),
        ("./a/source/", 9, "a/source"),
        ("a\\source", 9, "a/source"),
        (Path("a/source"), 9, "a/source"),
        ("../home/a/source", 9, "../home/a/source"),
        ("a/target", 12, "a/target"),  # of the folder of data sets
        ("a\\target\\", 12, "a/target"),
    ]:
        domain = load_domain(name, "all")
        assert (len(domain), domain.name) == (count, shown)
    assert len(load_domain("source", "all", root="~/a")) == 9
    monkeypatch.chdir(tmp_path / "home/a/source")
    assert len(load_domain(".", "all")) == 9
    assert len(load_domain(Path(), "all")) == 9


def test_known_names_go_before_paths_and_a_path_object_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    domain_folder(tmp_path / "pen")
    assert len(load_domain("pen", "test")) == 797
    assert load_domain(Path("pen"), "all").classes == load_domain("./pen", "all").classes == CLASSES


@pytest.mark.parametrize("name", ["nowhere", "no/where", "", Path("nowhere"), "pacs/photos"])
def test_what_is_neither_name_nor_path_says_what_there_is(tmp_path, name):
    with pytest.raises(ValueError, match=r"unknown domain '.*known ones are print, pen.*nor is there a folder or list"):
        load_domain(name, root=tmp_path)


def test_own_list_by_its_path(tmp_path):
    domain_folder(tmp_path / "images")
    lines = [f"images/{name}/{i}.png {name}" for name in reversed(CLASSES) for i in range(3)]
    (tmp_path / "all.txt").write_text("\n".join(lines))
    domain = load_domain(tmp_path / "all.txt", "all", size=4)
    assert (domain.classes, domain.labels.bincount().tolist()) == (CLASSES, [3, 3, 3])
    assert {Path(path).parent.name: domain.classes[label] for path, label in domain.samples} == dict(
        zip(CLASSES, CLASSES, strict=True)
    )
    parts = [set(load_domain(tmp_path / "all.txt", split).samples) for split in ("train", "test")]
    assert parts[0] | parts[1] == set(domain.samples)
    assert not parts[0] & parts[1]
    (tmp_path / "one.txt").write_text("images/mug/0.png mug\n")
    with pytest.raises(ValueError, match=r"one\.txt has images of one class alone, 'mug'"):
        load_domain(tmp_path / "one.txt")


def test_own_folders_make_a_pair(tmp_path):
    domains = [load_domain(domain_folder(tmp_path / name), "train", size=6) for name in ("source", "target")]
    assert DomainPair(*domains, 4, 0).batch(0).xt.shape == (4, 3, 6, 6)
