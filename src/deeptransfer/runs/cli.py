"""Command line: ``python -m deeptransfer run | predict | grid | table | begin | restamp | domains``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from deeptransfer.domains.cli import app as domains
from deeptransfer.runs import result as results
from deeptransfer.runs.adaptation import RunConfig, split_task
from deeptransfer.runs.adaptation import preset as read_preset
from deeptransfer.runs.distributed import process_group
from deeptransfer.runs.grid import complete, load_grid
from deeptransfer.runs.model import load_model
from deeptransfer.runs.recipe import Means
from deeptransfer.runs.recipe import run as run_recipe
from deeptransfer.runs.restamp import begin as begin_grid
from deeptransfer.runs.restamp import restamp as restamp_grid
from deeptransfer.runs.summary import summary

app = typer.Typer(help="Deep transfer learning: one run, grids of runs, and tables of them.", no_args_is_help=True)
app.add_typer(domains, name="domains")


# The options of ``run`` that are keys of the recipe as they stand.
RECIPE_OPTIONS = {field.name for field in fields(RunConfig)} - {"settings", "norm_settings", "network", "criteria"}


@contextmanager
def told() -> Iterator[None]:
    """An error ends the program with its message and no traceback: a wrong value with code 2, a failed run with 1."""
    try:
        yield
    except (ValueError, ArithmeticError, RuntimeError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ValueError) else 1) from None


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """``["weight=0.5", "layer=fc1"]`` as a dict; values are read as JSON where they are."""
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise ValueError(f"a setting is written name=value, such as weight=0.5; got {pair!r}")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    return settings


@app.command()
def run(
    task: Annotated[str, typer.Option(help="source:target; target:target with source-only is the oracle.")],
    preset: Annotated[str | None, typer.Option(help="A paper's recipe, of data/presets; options change it.")] = None,
    objective: Annotated[str | None, typer.Option(help="A method of the catalogue.")] = None,
    norm: Annotated[str | None, typer.Option(help="A normalisation of the catalogue.")] = None,
    seed: int | None = None,
    steps: int | None = None,
    batch_size: Annotated[int | None, typer.Option(help="Images of each domain, in each process.")] = None,
    lr: float | None = None,
    dtype: str | None = None,
    every: Annotated[int | None, typer.Option(help="Updates between two points of the curve.")] = None,
    start: Annotated[int | None, typer.Option(help="Updates on the source alone that come first.")] = None,
    labelled: Annotated[int | None, typer.Option(help="Labelled target images per class.")] = None,
    backbone: Annotated[str | None, typer.Option(help="small_cnn, mobilenet_025 or one of torchvision's.")] = None,
    weights: Annotated[str | None, typer.Option(help="'default', or a file below the data sets' folder.")] = None,
    backbone_lr: Annotated[float | None, typer.Option(help="Factor of lr in the backbone's layers.")] = None,
    size: Annotated[int | None, typer.Option(help="Height and width of the images.")] = None,
    transductive: Annotated[bool | None, typer.Option(help="Train on and score all images of each domain.")] = None,
    augment: Annotated[bool | None, typer.Option(help="Random crops and mirror images in training.")] = None,
    amp: Annotated[bool | None, typer.Option(help="Mixed precision, bfloat16.")] = None,
    channels_last: Annotated[bool | None, typer.Option(help="Channels-last memory.")] = None,
    randomize: Annotated[bool | None, typer.Option(help="Random variants of the source's digits.")] = None,
    scored: Annotated[int | None, typer.Option(help="Target images to score without labels, at most.")] = None,
    criterion: Annotated[list[str] | None, typer.Option(help="Without labels; the first selects; repeatable.")] = None,
    setting: Annotated[list[str] | None, typer.Option(help="Of the objective: name=value; repeatable.")] = None,
    norm_setting: Annotated[list[str] | None, typer.Option(help="Of the layers: name=value; repeatable.")] = None,
    network: Annotated[list[str] | None, typer.Option(help="Of the network: name=value; repeatable.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that load images ahead.", min=0)] = 0,
    score_batch: Annotated[int | None, typer.Option(help="Images scored at once, where memory is short.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Keep the state here, and go on from it.")] = None,
    save: Annotated[Path | None, typer.Option(help="Keep the trained network here, for predict.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the whole result here, as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole result as JSON, not a summary.")] = False,
) -> None:
    """Train one recipe and print how it stands. Under torchrun: in several processes."""
    given = {key: value for key, value in locals().items() if key in RECIPE_OPTIONS and value is not None}
    lists = {"settings": setting, "norm_settings": norm_setting, "network": network}
    with told(), process_group() as (rank, _):
        source, target = split_task(task)
        recipe = read_preset(preset) if preset else {}
        recipe |= given | {key: {**recipe.get(key, {}), **parse_settings(value or [])} for key, value in lists.items()}
        recipe |= {"criteria": criterion} if criterion else {}
        config = RunConfig(**recipe | {"source": source, "target": target})
        means = Means(workers=workers, checkpoint=checkpoint, score_batch=score_batch, save=save)
        if rank == 0:
            make_room(save, out, checkpoint)
        result = run_recipe(config, means)
    if rank > 0:
        return
    if out is not None:
        results.write_json(result, out)
    typer.echo(json.dumps(result, indent=1, ensure_ascii=False) if as_json else summary(result))
    if save is not None and not as_json:
        typer.echo(f"The network is kept in {save}: python -m deeptransfer predict {save} FOLDER")


def make_room(save: Path | None, *others: Path | None) -> None:
    """Before hours of training: the folders of what it will write; a network that was kept is not written over."""
    if save is not None and save.exists():
        raise ValueError(f"{save} is there: name another file, or remove it")
    for path in (save, *others):
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"{path} can't be written: {error}") from error


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="What run --save has kept.")],
    images: Annotated[Path, typer.Argument(help="A folder with images at any depth, or one image.")],
    out: Annotated[Path | None, typer.Option(help="Write the CSV here, not to the screen.")] = None,
    statistics: Annotated[str, typer.Option(help="Of the domain that the images are of: target or source.")] = "target",
    score_batch: Annotated[int | None, typer.Option(help="Images scored at once, where memory is short.")] = None,
) -> None:
    """Say of each image which class it is, as CSV: file, class, probability."""
    with told():
        frame = load_model(model).predict(images, statistics, score_batch)
    frame.to_csv(sys.stdout if out is None else out, index=False, float_format="%.4f")


@app.command()
def grid(
    name: Annotated[str, typer.Argument(help="Of a file in data/grids, without .toml.")],
    workers: Annotated[int, typer.Option(help="Processes that share the runs.", min=1)] = 1,
) -> None:
    """Do what is missing or stale of a grid; several such commands may run at once."""
    with told():
        recipes, folder = load_grid(name), results.results_folder(name)
        written = complete(recipes, folder, workers)
    typer.echo(f"{len(written)} of {len(recipes)} runs done now, in {folder}")


@app.command()
def table(
    name: Annotated[str, typer.Argument(help="Of a grid that was run.")],
    per_class: Annotated[bool, typer.Option("--per-class", help="Accuracy of each class, and their mean.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of Markdown.")] = False,
) -> None:
    """Mean ± sd over seeds of each score; in brackets the part of the gap that is closed; in per cent."""
    with told():
        frame = results.table(name, per_class)
    rows = json.dumps(results.to_json(frame), indent=1, ensure_ascii=False) if as_json else ""
    typer.echo(rows or results.to_markdown(frame))


@app.command()
def begin(
    name: Annotated[str, typer.Argument(help="Of a grid that was run.")],
    out: Annotated[Path, typer.Option(help="Where to write what the runs begin with.")],
) -> None:
    """Before a change that should change no number: begin a sample of a grid's runs on this machine, for restamp."""
    with told():
        results.write_json(begin_grid(name), out)


@app.command()
def restamp(
    names: Annotated[list[str], typer.Argument(help="Of grids that were run.")],
    before: Annotated[Path | None, typer.Option(help="What begin wrote with the code before the change.")] = None,
) -> None:
    """After a change that should change no number: begin a sample again; if equal, mark the results as today's."""
    for name in names:
        with told():
            old = None if before is None else json.loads(before.read_text(encoding="utf-8"))
            written, sample = restamp_grid(name, old)
        typer.echo(f"{name}: {len(sample)} runs begun again and equal, {len(written)} results marked")
