"""How runs are made, stored and judged.

A kind of run is one module against the protocol of :mod:`~deeptransfer.runs.recipe`; grids, tables, checkpoints and the
command line serve every kind.
"""

from deeptransfer.runs.comparison import (
    Comparison,
    compare_pairs,
    difference_text,
    differences_table,
    methods_table,
    paired_differences,
    signed,
)
from deeptransfer.runs.model import load_model
from deeptransfer.runs.result import accuracies, learning_curves, load_results

__all__ = [
    "Comparison",
    "accuracies",
    "compare_pairs",
    "difference_text",
    "differences_table",
    "learning_curves",
    "load_model",
    "load_results",
    "methods_table",
    "paired_differences",
    "signed",
]
