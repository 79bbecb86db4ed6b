"""Are two methods different? One answer for every table: paired differences, their interval, Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from deeptransfer.catalogue import label, methods
from deeptransfer.runs.result import accuracies, learning_curves

DIGITS_GRIDS = ("digits-source", "digits-losses", "digits-norms", "digits-norms-dann")
"""The long runs on the built-in digits."""
DIGITS_TASKS = ("print:pen", "pen:scene", "print:scene")
"""The tasks on the built-in digits that are reported; a fourth, pen:print, served for tuning."""


class Comparison:
    """Stored runs of some methods on some tasks, as a chapter compares them.

    Parameters
    ----------
    methods : sequence of str
        Names of the catalogue, in the order in which curves are drawn: an objective, trained with BatchNorm
        (``"cdan+e"``), or with another normalisation behind " · " (``"cdan+e · rn"``).
    tasks : sequence of str
    grids : sequence of str
        Where the runs are stored. Those of other methods and tasks are left out.
    host : str, optional
        The objective under which normalisations are compared. It goes without saying: a label has the layer alone.

    Attributes
    ----------
    runs : DataFrame
        As :func:`~deeptransfer.runs.result.accuracies` gives them, with a column ``method``.

    Raises
    ------
    ValueError
        If a method was not run on one of the tasks, or not with the same seeds as the others.

    Examples
    --------
    >>> digits = Comparison(["source-only", "dan", "dann"])
    >>> difference_text(digits.difference("dann", "dan", "print:pen"))  # doctest: +SKIP
    """

    def __init__(
        self,
        methods: Sequence[str],
        tasks: Sequence[str] = DIGITS_TASKS,
        grids: Sequence[str] = DIGITS_GRIDS,
        host: str | None = None,
    ) -> None:
        self.methods, self.tasks, self.grids, self.host = list(methods), list(tasks), list(grids), host
        self.runs = self._chosen(accuracies(*grids))
        expected = None
        for method in self.methods:
            for task in self.tasks:
                of_one = self.runs[(self.runs["method"] == method) & (self.runs["task"] == task)]
                seeds = sorted(of_one["seed"])
                expected = expected or sorted(set(seeds))
                if not seeds or seeds != expected:
                    raise ValueError(
                        f"{method!r} on {task!r} was run with the seeds {seeds}, where {expected} are expected"
                    )

    def _chosen(self, frame: pd.DataFrame) -> pd.DataFrame:
        method = frame["objective"].where(frame["norm"] == "bn", frame["objective"] + " · " + frame["norm"])
        frame = frame.assign(method=method)
        return frame[frame["method"].isin(self.methods) & frame["task"].isin(self.tasks)]

    def label(self, method: str) -> str:
        """What a reader calls a method: :func:`~deeptransfer.catalogue.label`, of the host's the layer's."""
        objective, _, norm = method.partition(" · ")
        return label(norm or "bn") if objective == self.host else label(method)

    def scores(self, task: str | None = None) -> pd.DataFrame:
        """Last accuracies, a row for each seed and a column for each method: of one task, or the mean over tasks."""
        runs = self.runs if task is None else self.runs[self.runs["task"] == task]
        return runs.pivot_table("last", "seed", "method")[self.methods]

    def table(self) -> pd.DataFrame:
        """:func:`methods_table` with a column for the mean over tasks, if there are several, and one for each."""
        runs = self.runs[["method", "task", "seed", "last"]]
        if len(self.tasks) > 1:
            mean = runs.groupby(["method", "seed"], as_index=False)["last"].mean()
            runs = pd.concat([runs, mean.assign(task="mean")])
        table = methods_table(runs, rows="method", columns="task")
        table.index = [self.label(method) for method in _in_order(runs["method"])]
        return table[["mean"] * (len(self.tasks) > 1) + [_title(task) for task in self.tasks]]

    def difference(self, method: str, other: str, task: str | None = None) -> pd.Series:
        """One row of :func:`compare_pairs`, not corrected: of one task, or of the means over tasks."""
        return compare_pairs(self.scores(task), [(method, other)]).iloc[0]

    def differences(self, pairs: Sequence[tuple[str, str]], tasks: Sequence[str] | None = None) -> pd.DataFrame:
        """:func:`compare_pairs` with names that a reader knows: of the means over tasks, or on each of some tasks."""
        if tasks is None:
            found = compare_pairs(self.scores(), pairs)
            return found.set_axis([f"{self.label(method)} − {self.label(other)}" for method, other in pairs])
        scores = self.runs.pivot_table("last", "seed", ["method", "task"])
        asked = [(method, other, task) for method, other in pairs for task in tasks]
        found = compare_pairs(scores, [((method, task), (other, task)) for method, other, task in asked])
        names = [f"{self.label(one)} − {self.label(other)}, {_title(task)}" for one, other, task in asked]
        return found.set_axis(names)

    @cached_property
    def _curves(self) -> pd.DataFrame:
        return self._chosen(learning_curves(*self.grids))

    @property
    def steps(self) -> list[int]:
        """The updates at which a curve has a point."""
        return sorted(set(self._curves["step"]))

    def curves(self, task: str, methods: Sequence[str] | None = None, score: str = "target") -> dict[str, np.ndarray]:
        """Accuracy along the training, by label: NumPy array of shape ``(seeds, steps)`` for each method.

        Parameters
        ----------
        task : str
        methods : sequence of str, optional
            By default all.
        score : {"target", "source"}
            Which domain's test images are scored.
        """
        of_task = self._curves[self._curves["task"] == task]
        runs = {name: of_task[of_task["method"] == name] for name in methods or self.methods}
        return {
            self.label(name): of_one.pivot(index="seed", columns="step", values=score).to_numpy()
            for name, of_one in runs.items()
        }


def paired_differences(scores: pd.DataFrame, baseline: str, confidence: float = 0.95) -> pd.DataFrame:
    r"""The mean difference of each method from a baseline, with an interval over the units in which both were measured.

    With :math:`\delta_u` the difference in unit :math:`u`, a seed or a task, of :math:`n`, and :math:`s` their standard
    deviation (:math:`n - 1`), the interval is Student's, :math:`\bar\delta \pm t_{n-1}\, s / \sqrt n`.

    Parameters
    ----------
    scores : DataFrame
        A row for each unit, a column for each method; no number missing.
    baseline : str
        The column that the others are compared with.
    confidence : float
        Of the interval, which is of one difference alone: it is not corrected.

    Returns
    -------
    DataFrame
        A row for each other method: ``difference``, ``low`` and ``high`` of the interval, ``units``, ``wins`` (units in
        which it is above the baseline), ``p`` of the two-sided test of no difference, and ``holm``, the same corrected
        for the number of rows by Holm's rule: if rows below 0.05 are called different, the chance that even one of
        them is not is at most 0.05.

    Raises
    ------
    ValueError
        If the baseline is no column, nothing is left to compare with it, there are fewer than two units, or a number is
        missing or infinite.
    """
    if baseline not in scores.columns or scores.shape[1] < 2:
        raise ValueError(f"baseline={baseline!r} must be one of two or more columns: {list(scores.columns)}")
    found = compare_pairs(scores, [(method, baseline) for method in scores if method != baseline], confidence)
    return found.set_axis([method for method in scores if method != baseline])


def compare_pairs(scores: pd.DataFrame, pairs: Sequence[tuple[Any, Any]], confidence: float = 0.95) -> pd.DataFrame:
    """The differences that a text speaks of, each as :func:`paired_differences` has it, corrected for their number.

    Parameters
    ----------
    scores : DataFrame
        A row for each unit, a column for each method; no number missing.
    pairs : sequence of (method, other)
        Of columns. All pairs of one question belong into one call: Holm's rule counts them.
    confidence : float
        Of each interval alone.

    Returns
    -------
    DataFrame
        A row for each pair, named "method − other"; columns as in :func:`paired_differences`.

    Raises
    ------
    ValueError
        If there is no pair, a name is no column, there are fewer than two units, or a number is missing or infinite.
    """
    if not pairs or (unknown := {name for pair in pairs for name in pair} - set(scores.columns)):
        raise ValueError(f"pairs must name columns {list(scores.columns)}, got {unknown if pairs else 'no pair'}")
    values = scores.to_numpy(float)
    if len(values) < 2:
        raise ValueError(f"an interval needs two units or more, got {len(values)}")
    if not np.isfinite(values).all():
        unit, method = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(f"no number for {scores.columns[method]!r} in {scores.index[unit]!r}: compare common units")
    rows = []
    for method, other in pairs:
        delta = scores[method] - scores[other]
        spread = float(delta.max() - delta.min())
        if spread == 0:  # Student's test divides by it: the units agree entirely
            low = high = float(delta.iloc[0])
            p = 1.0 if low == 0 else 0.0
        else:
            test = ttest_1samp(delta, 0.0)
            low, high = map(float, test.confidence_interval(confidence))
            p = float(test.pvalue)
        wins = int((delta > 0).sum())
        rows.append({"difference": delta.mean(), "low": low, "high": high, "units": len(delta), "wins": wins, "p": p})
    frame = pd.DataFrame(rows, index=[f"{method} − {other}" for method, other in pairs])
    frame["holm"] = holm(frame["p"].to_numpy())
    return frame


def differences_table(found: pd.DataFrame, unit: str = "seed") -> pd.DataFrame:
    """Differences as a page shows them: text, with a minus sign, bold where Holm's p is below 0.05.

    Parameters
    ----------
    found : DataFrame
        Of :func:`paired_differences` or :func:`compare_pairs`.
    unit : str
        What the units are called.
    """
    return pd.DataFrame(
        {
            name: {
                "points": f"**{signed(row.difference)}**" if row.holm < 0.05 else signed(row.difference),
                "95 % interval": f"{signed(row.low)} to {signed(row.high)}",
                f"{unit}s above": f"{row.wins:.0f} of {row.units:.0f}",
                "Holm's p": f"{row.holm:.3f}",
            }
            for name, row in found.iterrows()
        }
    ).T


def difference_text(row: pd.Series) -> str:
    """One row of :func:`compare_pairs` for a sentence: the mean difference with its interval, "+1.2 [0.3, 2.1]"."""
    low, high = (f"{row[name]:.1f}".replace("-", "−") for name in ("low", "high"))
    return f"{signed(row['difference'])} [{low}, {high}]"


def signed(value: float, digits: int = 1) -> str:
    """A difference as a sentence has it: with its sign, and a minus that is as wide as a plus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def methods_table(
    runs: pd.DataFrame, rows: str = "norm", columns: str = "objective", score: str = "last", unit: str = "seed"
) -> pd.DataFrame:
    """Means as a page shows them, the best of each column marked, and what cannot be told from it.

    Parameters
    ----------
    runs : DataFrame
        As :func:`~deeptransfer.runs.result.accuracies` gives them, one run for each recipe and seed.
    rows, columns : str
        What the table is laid out by; both are named and ordered as :mod:`~deeptransfer.catalogue` does.
    score : str
        The column that is shown.
    unit : {"seed", "task"}
        What methods are compared over. Over seeds, a cell is mean ± standard deviation (n − 1). Over tasks it is their
        mean alone, as tasks differ in what can be reached; a task counts by the mean of its seeds.

    Returns
    -------
    DataFrame
        Of text. The best mean of a column stands in ``**``; with " °" behind it a mean whose difference from the best
        has a 95 % interval that includes 0 (:func:`paired_differences`). A recipe that was not run is an empty text.

    Raises
    ------
    ValueError
        If two runs are of one recipe, task and seed: they differ in something that the table does not show; or if a
        column's methods were measured in different units.
    """
    if runs.duplicated([rows, columns, "task", "seed"]).any():
        raise ValueError(f"two runs of one {rows}, {columns}, task and seed: take those of one recipe")
    if unit == "seed" and (runs.groupby(columns)["task"].nunique() > 1).any():
        raise ValueError("several tasks in a column: take one of them, columns='task', or compare over unit='task'")
    values = runs.groupby([columns, rows, unit])[score].mean()
    table = pd.DataFrame("", index=_in_order(runs[rows]), columns=_in_order(runs[columns]))
    for column in table.columns:
        scores = values[column].unstack(rows)
        means = scores.mean()
        best = means.idxmax()
        close = set()
        if len(means) > 1 and len(scores) > 1:
            behind = paired_differences(scores, str(best))
            close = set(behind.index[behind["high"] >= 0])
        for row, mean in means.items():
            cell = f"**{mean:.1f}**" if row == best and len(means) > 1 else f"{mean:.1f}"
            if unit == "seed" and len(scores) > 1:
                cell += f" ± {scores[row].std():.1f}"
            table.loc[row, column] = cell + " °" * (row in close)
    return table.rename(index=_title, columns=_title)


def _title(name: str) -> str:
    """As a reader has it: a method by its label, a task with an arrow."""
    known = {method.name for method in methods()}
    return label(name) if known.issuperset(name.split(" · ")) else name.replace(":", " → ")


def _in_order(names: pd.Series) -> list[str]:
    """Each once: those of the catalogue in its order, then others."""
    known = {method.name: place for place, method in enumerate(methods())}
    return sorted(dict.fromkeys(names), key=lambda name: [known.get(part, len(known)) for part in name.split(" · ")])


def holm(p: np.ndarray) -> np.ndarray:
    """p-values corrected for their number by Holm's step-down rule; NumPy array of shape ``(m,)`` in, the same out."""
    order = np.argsort(p)
    factors = np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1.0)
    return corrected
