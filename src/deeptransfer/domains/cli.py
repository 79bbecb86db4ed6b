"""Command line: ``python -m deeptransfer domains list | fetch NAME | verify NAME``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from deeptransfer.domains import datasets_folder, domain_names, load_domain, real
from deeptransfer.domains.builtin import BUILDERS
from deeptransfer.domains.download import DownloadError, Source, fetch, is_intact, load_sources, remote_size
from deeptransfer.domains.folders import FolderDomain

app = typer.Typer(help="The domains that are known: list them, download them, check them.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="A data set, such as mnist, or one of its domains, such as office31/amazon.")]


def stop(message: str, code: int = 1) -> NoReturn:
    """End the program with a message instead of a traceback."""
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(code)


def all_sources() -> dict[str, Source]:
    """The list of sources, without which the program ends."""
    try:
        return load_sources()
    except ValueError as error:
        stop(str(error))


def find_source(name: str) -> Source:
    """The source of a data set, also by the name of one of its domains; anything else ends the program."""
    if name in BUILDERS:
        stop(f"{name} is built in: there is nothing to download", 2)
    sources = all_sources()
    dataset = name.partition("/")[0]
    if dataset not in sources:
        stop(f"unknown data set {name!r}: known ones are {', '.join(sources)}", 2)
    return sources[dataset]


def by_hand(source: Source, root: Path) -> str:
    """How to get a data set without us."""
    files = ", ".join(file.name for file in source.files)
    verb = "unpack it" if any(file.unpack for file in source.files) else "put it"
    what = source.manual or f"get {files}, or the same from the page, and {verb} into {source.folder}"
    return (
        f"By hand: {what}.\n  Page: {source.page}\n  Folder of data sets: {root} (or name another: DEEPTRANSFER_DATA)"
    )


@app.command("list")
def list_domains() -> None:
    """The names, the number of images of each split, and whether they are here."""
    for name in BUILDERS:
        counts = ", ".join(f"{len(load_domain(name, split)):,} {split}" for split in ("train", "test"))
        typer.echo(f"{name}: {counts}; built in")
    sources, root = all_sources(), datasets_folder()
    for name in domain_names()[len(BUILDERS) :]:
        images = sources[name.partition("/")[0]].images[name]
        counts = ", ".join(f"{count:,} {split}" for split, count in images.items())
        try:
            here = f"in {real.locate(name, root)}"
        except ValueError:
            here = "not here"
        typer.echo(f"{name}: {counts}; {here}")


@app.command("fetch")
def fetch_data(
    name: Name, yes: Annotated[bool, typer.Option("--yes", help="Download without asking first.")] = False
) -> None:
    """Download a data set, after showing its size and licence."""
    source, root = find_source(name), datasets_folder()
    typer.echo(f"{source.title}\n  Licence: {source.licence}\n  Please cite: {source.citation}\n  Page: {source.page}")
    if not source.files:
        stop(f"{source.name} can't be downloaded from here.\n{by_hand(source, root)}")
    sizes = [remote_size(file) for file in source.files]
    known = "unknown" if None in sizes else f"{sum(size or 0 for size in sizes) / 1e6:,.1f} MB"
    typer.echo(f"  Size: {known}\n  To: {root / source.folder}")
    if not yes:
        typer.confirm("Download it?", abort=True)
    try:
        typer.echo(f"{source.name} is in {fetch(source, root)}")
    except (DownloadError, ValueError) as error:
        stop(f"{error}\n{by_hand(source, root)}")
    except OSError as error:
        stop(f"{root} can't be written ({error}): name another folder by DEEPTRANSFER_DATA")


@app.command("verify")
def verify(name: Name) -> None:
    """Check a data set: the files' checksums, the number of images and classes, and that every image can be read."""
    source, root = find_source(name), datasets_folder()
    problems = []
    for file in (file for file in source.files if not file.unpack):
        path = root / source.folder / file.name
        if path.is_file() and not is_intact(file, path):
            problems.append(f"{path} is not the file that was published: its checksum differs")
    for domain_name, images in source.images.items():
        for split, count in images.items():
            try:
                found = read_all(domain_name, split)
            except ValueError as error:
                problems.append(str(error))
            else:
                typer.echo(f"{domain_name}: {found:,} images ({split})")
                if found != count:
                    problems.append(f"{domain_name} has {found:,} images ({split}), published were {count:,}")
    if problems:
        stop("\n".join(dict.fromkeys(problems)))
    typer.echo(f"{source.name} is complete")


def read_all(name: str, split: str) -> int:
    """The number of images of a split, each of which has been read; photographs have all of their classes."""
    domain = load_domain(name, split)
    if isinstance(domain, FolderDomain):
        for path, _ in domain.samples:
            domain.decode(path)
    published = all_sources()[name.partition("/")[0]].classes
    if published and len(domain.classes) != len(published):
        raise ValueError(f"{name} has {len(domain.classes)} classes, published were {len(published)}")
    return len(domain)
