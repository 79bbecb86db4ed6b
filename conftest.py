"""Make nbval compare what a reader sees: rounding noise passes, a changed number, word or picture fails.

It stands at the top, so that the comparison is the same however notebooks are collected. Without --nbval it is idle.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import pytest
from hypothesis import settings


def compare_outputs(cell: Any, computed: list[Any], stored: list[Any], skip_compare: object = None) -> bool:
    """Replace nbval's own comparison of one cell."""
    from notebook_comparison import Tolerance, differences

    try:
        found = differences(stored, computed, Tolerance.of(cell.cell.metadata))
    except (TypeError, ValueError) as error:  # a tolerance that says nothing valid
        found = [str(error)]
    cell.comparison_traceback = found
    return not found


def pytest_configure(config: pytest.Config) -> None:
    settings.register_profile("untimed", deadline=None)  # a slow machine is no fault
    settings.load_profile("untimed")
    if config.getoption("nbval", False):
        import nbval.kernel
        from nbval.plugin import IPyNbCell
        from notebooks import KERNEL_ENVIRONMENT, kernel_environment

        IPyNbCell.compare_outputs = compare_outputs
        environment = kernel_environment(compares=True)
        nbval.kernel.start_new_kernel = partial(nbval.kernel.start_new_kernel, env=environment)
        for name, value in KERNEL_ENVIRONMENT.items():
            os.environ.setdefault(name, value)  # for the tests beside the notebooks


def pytest_itemcollected(item: pytest.Item) -> None:
    if hasattr(item, "output_timeout"):
        item.output_timeout = 120  # nbval's five seconds are too few for large outputs on a busy machine
