"""Downloads against a server of our own that misbehaves, and archives that mean harm."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
import tempfile
import threading
import tomllib
import uuid
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deeptransfer import data_files
from deeptransfer.__main__ import app
from deeptransfer.domains import cli, domain_names, download, real
from deeptransfer.domains.download import DownloadError, Source, SourceFile, fetch, is_intact, load_sources, unpack

BODY = bytes(range(256)) * 4000  # 1 MB, several pieces
CHECKSUM = "sha256:" + hashlib.sha256(BODY).hexdigest()

ARRIVED = len(BODY) // 2 // download.PIECE * download.PIECE  # whole pieces of what is sent before the cut


class Handler(BaseHTTPRequestHandler):
    """Serves BODY at any path but those below; notes every request in ``server.seen``."""

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()

    def do_GET(self):
        path, wanted = self.path, self.headers.get("Range")
        first = path not in [seen for seen, _ in self.server.seen]
        self.server.seen.append((path, wanted))
        if path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/whole")
            self.end_headers()
            return
        if path == "/missing":
            self.send_error(404)
            return
        body = self.server.archives.get(path, b"x" * len(BODY) if path == "/wrong" else BODY)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and path != "/no-ranges" else 0
        if start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        cut = path == "/always-cut" or (first and path in ("/cut", "/no-ranges"))
        self.wfile.write(body[start : len(body) // 2] if cut else body[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("DEEPTRANSFER_PROGRESS", "0")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.seen, running.archives = [], {}
        running.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def source_file(server, *paths, **changes):
    given = {"name": "data.bin", "urls": tuple(server.url + path for path in paths), "checksum": CHECKSUM}
    return SourceFile(**given | changes)


# One file


def test_download_gives_the_file_and_leaves_nothing_else(server, tmp_path):
    path = download.download(source_file(server, "/whole"), tmp_path)
    assert path.read_bytes() == BODY
    assert os.listdir(tmp_path) == ["data.bin"]


def test_download_does_not_ask_again_for_what_is_there(server, tmp_path):
    for _ in range(2):
        download.download(source_file(server, "/whole"), tmp_path)
    assert len(server.seen) == 1


def test_download_continues_where_the_connection_was_cut(server, tmp_path):
    assert download.download(source_file(server, "/cut"), tmp_path).read_bytes() == BODY
    assert server.seen == [("/cut", None), ("/cut", f"bytes={ARRIVED}-")]


def test_download_continues_in_another_process_and_at_another_mirror(server, tmp_path):
    with pytest.raises(DownloadError, match="always-cut"):
        download.download(source_file(server, "/always-cut"), tmp_path)
    assert os.listdir(tmp_path) == ["data.bin.part"]  # nothing under its own name before it is whole
    server.seen.clear()
    assert download.download(source_file(server, "/whole"), tmp_path).read_bytes() == BODY
    assert server.seen == [("/whole", f"bytes={ARRIVED}-")]
    assert os.listdir(tmp_path) == ["data.bin"]


def test_download_starts_anew_where_a_server_knows_no_ranges(server, tmp_path):
    assert download.download(source_file(server, "/no-ranges"), tmp_path).read_bytes() == BODY
    assert len(server.seen) == 2  # not one more, to get rid of bytes that were put behind others


def test_download_uses_a_part_that_is_whole_already(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(BODY)
    assert download.download(source_file(server, "/whole"), tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("left", [b"y" * 1000, b"y" * (len(BODY) + 1)])
def test_download_recovers_from_a_part_of_wrong_bytes(server, tmp_path, left):
    (tmp_path / "data.bin.part").write_bytes(left)
    assert download.download(source_file(server, "/whole"), tmp_path).read_bytes() == BODY


def test_download_follows_a_redirect(server, tmp_path):
    assert download.download(source_file(server, "/moved"), tmp_path).read_bytes() == BODY


def test_download_takes_the_first_mirror_that_has_the_right_bytes(server, tmp_path):
    path = download.download(source_file(server, "/missing", "/wrong", "/whole"), tmp_path)
    assert path.read_bytes() == BODY
    assert [seen for seen, _ in server.seen] == ["/missing", "/wrong", "/whole"]


@pytest.mark.parametrize(("path", "reason"), [("/missing", "404"), ("/wrong", "does not match the known hash")])
def test_download_says_what_was_wrong_and_leaves_nothing(server, tmp_path, path, reason):
    with pytest.raises(DownloadError, match=reason):
        download.download(source_file(server, path), tmp_path)
    assert os.listdir(tmp_path) == []


def test_download_keeps_a_good_file_when_the_mirror_has_another(server, tmp_path):
    """Checked first, then moved: an old file is never replaced by wrong bytes."""
    (tmp_path / "data.bin").write_bytes(b"old")
    with pytest.raises(DownloadError):
        download.download(source_file(server, "/wrong"), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == b"old"


def test_download_stops_a_server_that_sends_more_than_was_published(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PIECE", 1000)
    lengths = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (lengths.append(Path(a).stat().st_size), replace(a, b)))
    with pytest.raises(DownloadError):
        download.download(source_file(server, "/wrong", size=5000), tmp_path)
    assert lengths == [6000]


def test_download_without_a_server_names_every_mirror(tmp_path, server):
    nowhere = "http://127.0.0.1:9/a", "http://127.0.0.1:9/b"
    with pytest.raises(DownloadError, match=r"(?s)/a.*/b"):
        download.download(source_file(server, urls=nowhere), tmp_path)


def test_size_is_the_listed_one_or_what_a_mirror_says(server):
    assert download.remote_size(source_file(server, "/whole", size=7)) == 7
    assert download.remote_size(source_file(server, "/whole")) == len(BODY)
    assert download.remote_size(source_file(server, urls=("http://127.0.0.1:9/",))) is None


# Archives


def tar(*members, mode="w:gz"):
    """A tar of TarInfo objects, or (name, bytes) pairs."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for member in members:
            info, content = (
                (member, b"") if isinstance(member, tarfile.TarInfo) else (tarfile.TarInfo(member[0]), member[1])
            )
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def zipped(*members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content, mode in members:
            info = zipfile.ZipInfo("placeholder")
            info.filename = name
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return stream.getvalue()


def link(kind, target):
    info = tarfile.TarInfo("photographs/link")
    info.type, info.linkname = kind, target
    return info


GOOD = ("photographs/mug/one.jpg", b"one")
FILE = stat.S_IFREG | 0o644
OUTSIDE = str(Path(tempfile.gettempdir(), f"outside-{uuid.uuid4()}"))
HOSTILE = {
    "tar traversal": tar(GOOD, ("../outside", b"x")),
    "tar traversal inside": tar(GOOD, ("photographs/../../outside", b"x")),
    "tar absolute": tar(GOOD, (OUTSIDE, b"x")),
    "tar backslash": tar(GOOD, ("..\\outside", b"x")),
    "tar drive": tar(GOOD, ("C:outside", b"x")),
    "tar symlink": tar(GOOD, link(tarfile.SYMTYPE, "/etc")),
    "tar symlink inside": tar(GOOD, link(tarfile.SYMTYPE, "mug/one.jpg")),
    "tar hardlink": tar(GOOD, link(tarfile.LNKTYPE, "../../outside")),
    "tar hardlink inside": tar(GOOD, link(tarfile.LNKTYPE, GOOD[0])),
    "tar device": tar(GOOD, link(tarfile.CHRTYPE, "")),
    "tar fifo": tar(GOOD, link(tarfile.FIFOTYPE, "")),
    "zip traversal": zipped((*GOOD, FILE), ("../outside", b"x", FILE)),
    "zip absolute": zipped((*GOOD, FILE), (OUTSIDE, b"x", FILE)),
    "zip backslash": zipped((*GOOD, FILE), ("a\\..\\..\\outside", b"x", FILE)),
    "zip symlink": zipped((*GOOD, FILE), ("link", b"/etc", stat.S_IFLNK | 0o777)),
}


@pytest.mark.parametrize("archive", [tar(GOOD), tar(GOOD, mode="w"), tar(GOOD, mode="w:xz"), zipped((*GOOD, 0))])
def test_unpack_gives_the_files(tmp_path, archive):
    (tmp_path / "a").write_bytes(archive)
    unpack(tmp_path / "a", tmp_path / "data" / "set")
    assert (tmp_path / "data" / "set" / GOOD[0]).read_bytes() == GOOD[1]
    assert os.listdir(tmp_path / "data") == ["set"]


@pytest.mark.parametrize("kind", HOSTILE)
def test_unpack_refuses_what_leads_outside_and_leaves_nothing(tmp_path, kind):
    inner = tmp_path / "a" / "b"  # the traversals above would end in tmp_path
    inner.mkdir(parents=True)
    (inner / "archive").write_bytes(HOSTILE[kind])
    with pytest.raises(ValueError, match=r"archive is not unpacked: .*(leads outside|link or a device)"):
        unpack(inner / "archive", inner / "target")
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["a", "a/b", "a/b/archive"]
    assert not Path(OUTSIDE).exists()


@pytest.mark.parametrize(
    "archive",
    [tar(("big", os.urandom(50_000)))[:-9000], zipped((*GOOD, FILE))[:-30], tar(GOOD, mode="w")[:600], b"no archive"],
    ids=["tar.gz", "zip", "tar", "text"],
)
def test_unpack_of_a_damaged_archive_says_so_and_leaves_nothing(tmp_path, archive):
    (tmp_path / "archive").write_bytes(archive)
    with pytest.raises(ValueError, match="archive is damaged"):
        unpack(tmp_path / "archive", tmp_path / "target")
    assert os.listdir(tmp_path) == ["archive"]


def test_unpack_takes_no_permissions_from_an_archive(tmp_path):
    info = tarfile.TarInfo("program")
    info.mode = 0o6777
    (tmp_path / "archive").write_bytes(tar(info))
    unpack(tmp_path / "archive", tmp_path / "target")
    assert not (tmp_path / "target" / "program").stat().st_mode & 0o6111


def test_unpack_on_a_full_disk_blames_the_disk(tmp_path, monkeypatch):
    (tmp_path / "archive").write_bytes(tar(GOOD))

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(tmp_path / "archive", tmp_path / "target")


# Data sets and the command line


def source(server, **changes):
    archive = tar(("photographs/amazon/mug/one.jpg", b"one"))
    server.archives["/archive"] = archive
    checksum = "md5:" + hashlib.md5(archive).hexdigest()
    files = (
        source_file(server, "/archive", name="set.tar.gz", checksum=checksum, unpack=True),
        source_file(server, "/whole", name="labels.bin", size=len(BODY)),
    )
    given = {"name": "toys", "title": "Toys", "licence": "to kill", "citation": "Bond 1962", "page": "http://page"}
    return Source(**given | {"folder": "toys", "images": {}, "files": files} | changes)


@pytest.fixture
def call(server, tmp_path, monkeypatch):
    """The command line with a data set "toys" of the server's; returns exit code and all that it says."""
    monkeypatch.setenv("DEEPTRANSFER_DATA", str(tmp_path / "data"))

    def run(*arguments, answer=None, **changes):
        monkeypatch.setattr(cli, "load_sources", lambda: {"toys": source(server, **changes)})
        result = CliRunner().invoke(app, ["domains", *arguments], input=answer)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    return run


def test_fetch_unpacks_archives_keeps_files_and_does_nothing_twice(server, tmp_path):
    for _ in range(2):
        assert fetch(source(server), tmp_path) == tmp_path / "toys"
    assert (tmp_path / "toys/photographs/amazon/mug/one.jpg").read_bytes() == b"one"
    assert (tmp_path / "toys/labels.bin").read_bytes() == BODY
    assert os.listdir(tmp_path) == ["toys"]
    assert [path for path, _ in server.seen] == ["/archive", "/whole"]


def test_fetch_shows_size_and_licence_and_asks_before_it_downloads(call, server, tmp_path):
    files = (source_file(server, "/whole", size=len(BODY)),)
    code, said = call("fetch", "toys", answer="n\n", files=files)
    assert code == 1
    assert all(part in said for part in ("Licence: to kill", "Bond 1962", "Size: 1.0 MB", "Download it?"))
    assert server.seen == []
    assert not (tmp_path / "data").exists()
    assert call("fetch", "toys", answer="y\n", files=files)[0] == 0
    assert (tmp_path / "data/toys/data.bin").read_bytes() == BODY


def test_fetch_by_the_name_of_a_domain_gets_the_data_set(call):
    code, said = call("fetch", "toys/amazon", "--yes")
    assert code == 0, said


@pytest.mark.parametrize("path", ["/missing", "/wrong", None])
def test_fetch_that_fails_tells_once_how_to_do_it_by_hand(call, server, path):
    urls = ("http://127.0.0.1:9/data.bin",) if path is None else (server.url + path,)
    code, said = call("fetch", "toys", "--yes", files=(source_file(server, urls=urls),))
    assert code == 1
    assert said.count("By hand:") == 1
    assert all(part in said for part in (urls[0], "Page: http://page", "DEEPTRANSFER_DATA"))


def test_fetch_of_a_hostile_archive_is_refused(call, server, tmp_path):
    server.archives["/hostile"] = HOSTILE["tar traversal"]
    checksum = "sha256:" + hashlib.sha256(HOSTILE["tar traversal"]).hexdigest()
    hostile = source_file(server, "/hostile", name="set.tar.gz", checksum=checksum, unpack=True)
    code, said = call("fetch", "toys", "--yes", files=(hostile,))
    assert code == 1
    assert "leads outside" in said
    assert os.listdir(tmp_path / "data") == ["set.tar.gz"]
    assert not (tmp_path / "outside").exists()


def test_fetch_of_what_has_no_file_tells_how_to_get_it(call):
    code, said = call("fetch", "toys", files=(), manual="ask Q for them")
    assert code == 1
    assert "ask Q for them" in said


def test_fetch_into_a_folder_that_cannot_be_written_says_so(call, tmp_path):
    (tmp_path / "data").write_text("a file")
    code, said = call("fetch", "toys", "--yes")
    assert code == 1
    assert "can't be written" in said


@pytest.mark.parametrize("command", ["fetch", "verify"])
def test_names_that_have_no_source_say_what_there_is(call, command):
    assert call(command, "toy")[0] == 2
    assert "known ones are toys" in call(command, "toy")[1]
    assert "pen is built in" in call(command, "pen")[1]


def test_verify_finds_wrong_bytes_and_missing_images(call, server, tmp_path, monkeypatch):
    kept = {"files": (source_file(server, "/whole"),), "images": {"pacs/photo": {"all": 2}}}
    assert call("fetch", "toys", "--yes", **kept)[0] == 0
    monkeypatch.setattr(cli, "read_all", lambda name, split: 2)
    assert call("verify", "toys", **kept) == (0, "pacs/photo: 2 images (all)\ntoys is complete\n")
    monkeypatch.setattr(cli, "read_all", lambda name, split: 1)
    (tmp_path / "data/toys/data.bin").write_bytes(BODY[:-1])
    code, said = call("verify", "toys", **kept)
    assert code == 1
    assert "has 1 images (all), published were 2" in said
    assert "its checksum differs" in said


# The list of sources


def test_every_real_domain_has_a_source_and_a_number_of_images():
    sources = load_sources()
    assert [name for source in sources.values() for name in source.images] == list(real.LOADERS)
    assert set(real.LOADERS) < set(domain_names())
    assert all(source.files or source.manual for source in sources.values())
    digits = {len(file.checksum) for source in sources.values() for file in source.files}
    assert digits == {len("md5:") + 32}


def test_sources_agree_with_torchvision():
    from torchvision.datasets import MNIST, SVHN, USPS

    sources = load_sources()
    files = {file.name: file for source in sources.values() for file in source.files}
    for name, md5 in MNIST.resources:
        assert files[name].checksum == f"md5:{md5}"
        assert files[name].urls == tuple(mirror + name for mirror in MNIST.mirrors)
    for split_list in (USPS.split_list, {k: v for k, v in SVHN.split_list.items() if k != "extra"}):
        for url, name, md5 in split_list.values():
            assert (files[name].urls, files[name].checksum) == ((url,), f"md5:{md5}")


def test_a_list_of_sources_that_is_missing_is_named_with_its_folder(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=rf"there is no {tmp_path}/datasets\.toml"):
        load_sources(tmp_path / "datasets.toml")
    monkeypatch.setattr(data_files, "data_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match=rf"there is no datasets\.toml in {tmp_path}, nor in the installed package"):
        load_sources()


def test_sources_hold_no_unknown_key():
    """A key that is misspelt would be a TypeError in the middle of a command."""
    entries = tomllib.loads((Path(__file__).parents[2] / "data/datasets.toml").read_text(encoding="utf-8"))
    assert list(load_sources()) == list(entries)


def test_checksum_is_of_the_whole_file(server, tmp_path):
    (tmp_path / "data.bin").write_bytes(BODY)
    assert is_intact(source_file(server, "/whole"), tmp_path / "data.bin")
    assert not is_intact(source_file(server, "/whole", checksum=CHECKSUM[:-1] + "x"), tmp_path / "data.bin")
