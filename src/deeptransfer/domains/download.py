"""Getting real data sets: from several mirrors, resumed where a connection broke, checked, unpacked safely."""

from __future__ import annotations

import os
import stat
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import IO, Any

import pooch
import requests
from tqdm.auto import tqdm

from deeptransfer.data_files import shipped

ATTEMPTS = 3  # at one mirror, each continuing where the last one broke
TIMEOUT = (10, 60)  # seconds to connect, and between two pieces
PIECE = 2**16  # bytes; a piece that a broken connection leaves incomplete is lost

pooch.get_logger().setLevel("WARNING")


class DownloadError(RuntimeError):
    """No mirror gave the file; the message lists each with its reason."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a data set: its mirrors, ``checksum`` as ``"md5:…"`` or ``"sha256:…"``, bytes if they are known."""

    name: str
    urls: tuple[str, ...]
    checksum: str
    size: int | None = None
    unpack: bool = False


@dataclass(frozen=True)
class Source:
    """Where one data set comes from: an entry of ``data/datasets.toml``.

    Attributes
    ----------
    images : mapping
        The number of images of each split of each domain.
    classes : tuple of str
        Of photographs, as they were published.
    manual : str
        What to do by hand where there are no ``files``.
    """

    name: str
    title: str
    licence: str
    citation: str
    page: str
    folder: str
    images: Mapping[str, Mapping[str, int]]
    files: tuple[SourceFile, ...] = ()
    classes: tuple[str, ...] = ()
    manual: str = ""


def load_sources(path: str | Path | None = None) -> dict[str, Source]:
    """The entries of ``data/datasets.toml`` by name.

    Raises
    ------
    ValueError
        If the file is not there.
    """
    path = shipped("datasets.toml") if path is None else Path(path)
    if not path.is_file():
        raise ValueError(f"there is no {path}, the list of data sets")
    entries = tomllib.loads(path.read_text(encoding="utf-8"))
    return {name: _source(name, dict(entry)) for name, entry in entries.items()}


def _source(name: str, entry: dict[str, Any]) -> Source:
    mirrors = entry.pop("mirrors", ())
    files = []
    for file in entry.pop("files", ()):
        urls = file.pop("urls", None) or [mirror + file["name"] for mirror in mirrors]
        files.append(SourceFile(urls=tuple(urls), **file))
    return Source(name=name, files=tuple(files), classes=tuple(entry.pop("classes", ())), **entry)


def fetch(source: Source, root: str | Path) -> Path:
    """Download what is missing of ``source`` into its folder in ``root``, and return that folder.

    Raises
    ------
    DownloadError
        If no mirror gave a file.
    ValueError
        If an archive is damaged, or holds what it must not.
    OSError
        If the folder can't be written.
    """
    target = Path(root, source.folder)
    for file in source.files:
        if not file.unpack:
            download(file, target)
        elif not target.exists():
            archive = download(file, Path(root))
            unpack(archive, target)
            archive.unlink()
    return target


def download(file: SourceFile, folder: str | Path) -> Path:
    """Download one file from the first mirror that gives it, unless it is there already.

    What has arrived stays in ``<name>.part`` when a connection breaks, and the next attempt, also of another process
    and at another mirror, continues there. The file appears under its name when its checksum is right.
    """
    part = Path(folder, f"{file.name}.part")
    reasons = []
    for url in file.urls:
        for _ in range(ATTEMPTS):
            resumed = part.exists()
            try:
                downloader = _Resuming(part, file.size)
                return Path(pooch.retrieve(url, file.checksum, file.name, folder, downloader=downloader))
            except requests.HTTPError as error:  # this mirror does not have it
                reasons.append(f"{url}: {error}")
                break
            except requests.RequestException as error:
                reasons.append(f"{url}: {error}")
            except ValueError as error:  # the wrong bytes; those of an earlier attempt may be to blame
                reasons.append(f"{url}: {error}")
                if not resumed:
                    break
    raise DownloadError(f"{file.name} could not be downloaded:\n" + "\n".join(dict.fromkeys(reasons)))


class _Resuming:
    """pooch's downloader over HTTP that keeps what has arrived in ``part``."""

    def __init__(self, part: Path, size: int | None) -> None:
        self.part, self.size = part, size

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        have = self.part.stat().st_size if self.part.exists() else 0
        headers = {"Accept-Encoding": "identity"}  # the bytes as they are: the checksum is of them
        if have:
            headers["Range"] = f"bytes={have}-"
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code != 416:  # 416: nothing comes after what we have
                response.raise_for_status()
                continued = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
                have = have if response.status_code == 206 and continued else 0
                self._write(response, have)
        os.replace(self.part, output_file)

    def _write(self, response: requests.Response, have: int) -> None:
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else self.size
        hidden = os.environ.get("DEEPTRANSFER_PROGRESS") == "0"
        name = self.part.stem
        with (
            self.part.open("ab" if have else "wb") as part,
            tqdm(desc=name, total=total, initial=have, unit="B", unit_scale=True, disable=hidden) as bar,
        ):
            for piece in response.iter_content(PIECE):
                part.write(piece)
                bar.update(len(piece))
                if self.size is not None and part.tell() > self.size:
                    break  # no need to wait for the end of it: the checksum will be wrong


def remote_size(file: SourceFile) -> int | None:
    """Bytes of a file, as listed or else as a mirror says; None if none does."""
    if file.size is not None:
        return file.size
    for url in file.urls:
        try:
            response = requests.head(url, allow_redirects=True, timeout=TIMEOUT)
        except requests.RequestException:
            continue
        if response.ok and "Content-Length" in response.headers:
            return int(response.headers["Content-Length"])
    return None


def is_intact(file: SourceFile, path: Path) -> bool:
    """Whether ``path`` holds exactly the bytes of ``file``."""
    algorithm, _, digest = file.checksum.partition(":")
    return pooch.file_hash(str(path), alg=algorithm) == digest


def unpack(archive: str | Path, target: str | Path) -> None:
    """Unpack a tar or zip archive into ``target``, which must not exist and appears only when all is there.

    Raises
    ------
    ValueError
        If the archive is damaged, or has a member that is no plain file or folder (a link, a device), or whose name
        leads outside. Nothing is left behind.
    OSError
        If ``target`` can't be written.
    """
    archive, target = Path(archive), Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
        inside = Path(temporary, "unpacked")
        inside.mkdir()
        try:
            for name, content in _members(archive):
                _check_name(name)
                path = inside / name
                (path if content is None else path.parent).mkdir(parents=True, exist_ok=True)
                if content is not None:
                    with content, path.open("wb") as file:
                        while piece := content.read(PIECE):
                            file.write(piece)
        except ValueError as error:
            raise ValueError(f"{archive.name} is not unpacked: {error}") from None
        except Exception as error:  # a damaged archive raises EOFError, zlib.error, tarfile.ReadError, BadGzipFile, …
            if isinstance(error, OSError) and error.errno is not None:  # the system's: a full disk, say
                raise
            kind = type(error).__name__
            raise ValueError(f"{archive.name} is damaged ({kind}: {error}): download it again") from error
        os.rename(inside, target)


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Name and content of every member, None for a folder. Nothing but names and bytes is taken from an archive."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise ValueError(f"{info.filename!r} is a link or a device")
                yield info.orig_filename, None if info.is_dir() else packed.open(info)
    else:
        with tarfile.open(archive) as tar:
            for member in tar:
                if not (member.isreg() or member.isdir()):
                    raise ValueError(f"{member.name!r} is a link or a device")
                yield member.name, None if member.isdir() else tar.extractfile(member)


def _check_name(name: str) -> None:
    """Refuse names that lead outside, on any system: Windows knows every separator."""
    path = PureWindowsPath(name)
    if path.drive or path.root or ".." in path.parts or "\0" in name:
        raise ValueError(f"{name!r} leads outside the folder")
