"""Command line: ``python -m deeptransfer run | grid | table | layerwise | domains``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from deeptransfer import experiments, results
from deeptransfer import layerwise as layerwise_experiment
from deeptransfer.domains.cli import app as domains

app = typer.Typer(help="Deep transfer learning: one run, grids of runs, and tables of them.", no_args_is_help=True)
app.add_typer(domains, name="domains")


@contextmanager
def usage_errors() -> Iterator[None]:
    """A wrong value ends the program with its message and exit code 2, not with a traceback."""
    try:
        yield
    except ValueError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from None


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


def results_folder(name: str) -> Path:
    """Where the results of a grid are kept."""
    return experiments.data_folder() / "results" / name


@app.command()
def run(
    task: Annotated[str, typer.Option(help="source:target; target:target with source-only is the oracle.")],
    objective: Annotated[str, typer.Option(help="A method of the catalogue.")] = "source-only",
    norm: Annotated[str, typer.Option(help="A normalisation of the catalogue.")] = "bn",
    seed: int = 0,
    steps: int = 300,
    batch_size: int = 64,
    lr: float = 0.05,
    dtype: str = "float32",
    every: Annotated[int, typer.Option(help="Updates between two points of the curve.")] = 25,
    start: Annotated[int, typer.Option(help="Updates on the source alone that come first.")] = 0,
    labelled: Annotated[int, typer.Option(help="Labelled target images per class.")] = 0,
    setting: Annotated[list[str] | None, typer.Option(help="Of the objective: name=value; repeatable.")] = None,
    norm_setting: Annotated[list[str] | None, typer.Option(help="Of the layers: name=value; repeatable.")] = None,
    network: Annotated[list[str] | None, typer.Option(help="Of the network: name=value; repeatable.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the result here, not to the screen.")] = None,
) -> None:
    """Train one recipe and print its result as JSON."""
    with usage_errors():
        source, target = experiments.split_task(task)
        config = experiments.RunConfig(
            source=source,
            target=target,
            objective=objective,
            norm=norm,
            seed=seed,
            steps=steps,
            batch_size=batch_size,
            lr=lr,
            dtype=dtype,
            every=every,
            start=start,
            labelled=labelled,
            settings=parse_settings(setting or []),
            norm_settings=parse_settings(norm_setting or []),
            network=parse_settings(network or []),
        )
        result = experiments.run(config)
    if out is None:
        typer.echo(json.dumps(result, indent=1, ensure_ascii=False))
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        results.write_json(result, out)


@app.command()
def grid(
    name: Annotated[str, typer.Argument(help="Of a file in data/grids, without .toml.")],
    workers: Annotated[int, typer.Option(help="Processes that share the runs.", min=1)] = 1,
) -> None:
    """Do what is missing or stale of a grid; several such commands may run at once."""
    with usage_errors():
        configs = experiments.load_grid(name)
        try:
            written = experiments.grid(configs, results_folder(name), workers)
        except RuntimeError as error:
            typer.echo(f"Error: {error}", err=True)
            raise typer.Exit(1) from None
    typer.echo(f"{len(written)} of {len(configs)} runs done now, in {results_folder(name)}")


@app.command()
def table(
    name: Annotated[str, typer.Argument(help="Of a grid that was run.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of Markdown.")] = False,
) -> None:
    """Mean ± sd over seeds of the three selections; in brackets the part of the gap that is closed; in per cent."""
    with usage_errors():
        frame = results.table(results_folder(name))
    rows = json.dumps(results.to_json(frame), indent=1, ensure_ascii=False) if as_json else ""
    typer.echo(rows or results.to_markdown(frame))


@app.command()
def layerwise(name: Annotated[str, typer.Argument(help="Of a file in data/layerwise, without .toml.")]) -> None:
    """Do what is missing or stale of chapter 1's experiment: every treatment at every depth, for each seed."""
    with usage_errors():
        configs = layerwise_experiment.load_grid(name)
    written = layerwise_experiment.run_grid(configs, results_folder(name))
    typer.echo(f"{len(written)} of {len(configs)} runs done now, in {results_folder(name)}")


if __name__ == "__main__":
    app()
