"""Fingerprints: what an edit of the code, or of the recipe, makes stale."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from deeptransfer.runs import provenance
from deeptransfer.runs.adaptation import RunConfig
from deeptransfer.runs.provenance import fingerprint_code
from deeptransfer.runs.recipe import fingerprint, is_stale

NETWORK = {"widths": [4, 4], "hidden": [8]}
TINY = RunConfig(
    source="print", target="pen", objective="da-nn", steps=4, every=2, batch_size=16, dtype="float64", network=NETWORK
)


def edited(monkeypatch, module, old, new):
    """Let the fingerprint see a module as if it had been edited."""
    source = provenance._source

    def changed(name):
        text = source(name)
        if name == module:
            assert old in text
            text = text.replace(old, new)
        return text

    monkeypatch.setattr(provenance, "_source", changed)


EDITS = [
    # what is edited, and whether it makes a number of DaNN on plain BatchNorm
    (
        "deeptransfer.objectives",
        '"mmd": self.strength(progress) * mmd2',
        '"mmd": -self.strength(progress) * mmd2',
        True,
    ),
    (
        "deeptransfer.objectives",
        "F.cross_entropy(logits, labels)}",
        "F.cross_entropy(logits, labels) * 2}",
        True,
    ),
    ("deeptransfer.networks", "padding=2", "padding=1", True),
    ("deeptransfer.training", "(1 + 10 * progress)", "(1 + 9 * progress)", True),
    ("deeptransfer.domains.builtin", "PEN_TRAIN = 1000", "PEN_TRAIN = 999", True),
    ("deeptransfer.domains.builtin", "PEN_SIDE = 22", "PEN_SIDE = 20", True),
    ("deeptransfer.domains.builtin", "SCENE_TRAIN_DIGITS = 497", "SCENE_TRAIN_DIGITS = 496", False),  # another domain
    ("deeptransfer.domains.dataset", "images.float() / 255 if", "images.float() / 256 if", True),
    ("deeptransfer.domains.pair", "state >> 1", "state >> 2", True),
    ("deeptransfer.normalization.split", "model(torch.cat(batches)", "model(torch.cat(batches[::-1])", True),
    ("deeptransfer.selection", "_entropy(log_mean) -", "_entropy(log_mean) +", True),
    ("deeptransfer.runs.adaptation", "max(curve", "min(curve", True),
    ("deeptransfer.objectives", "Mean entropy of the target's predictions.", "Another docstring.", False),
    ("deeptransfer.objectives", "Domain adaptive neural network: MMD²", "Something else: MMD²", False),
    ("deeptransfer.training", "# one transfer for all terms", "# a comment", False),
    ("deeptransfer.training", "loss {name!r} is", "the loss {name!r} is", False),
    ("deeptransfer.training", "if last < 1 or", "if last < 2 or", False),  # a guard: it can only raise
    ("deeptransfer.training", "if optimizer is None:", "if optimizer is not None:", True),
    ("deeptransfer.training", "lr: float = 0.02", 'lr: "a rate" = 0.02', False),
    ("deeptransfer.objectives", "(confidence >= self.threshold)", "(confidence > self.threshold)", False),
    ("deeptransfer.discrepancy", "def linear_time_mmd2(", "def renamed(", False),
    (
        "deeptransfer.normalization.transnorm",
        "torch.1 if self.halved else 2",
        "torch.1 if self.halved else 3",
        False,
    ),
    ("deeptransfer.normalization.passes", "def measure(", "def measured(", False),
]


@pytest.mark.parametrize(("module", "old", "new", "matters"), EDITS)
def test_an_edit_changes_the_fingerprint_exactly_if_it_can_change_the_numbers(monkeypatch, module, old, new, matters):
    before = fingerprint(TINY)
    edited(monkeypatch, module, old, new)
    assert (fingerprint(TINY) != before) is matters


def test_an_edit_of_a_layer_concerns_those_who_use_it(monkeypatch):
    recipes = {
        norm: replace(TINY, norm=norm) for norm in ("bn", "dsbn", "transnorm", "transnorm-uniform", "transnorm-halved")
    }
    before = {norm: fingerprint(config) for norm, config in recipes.items()}
    edited(monkeypatch, "deeptransfer.normalization.transnorm", "1 if self.halved else 2", "1 if self.halved else 3")
    changed = {norm for norm, config in recipes.items() if fingerprint(config) != before[norm]}
    assert changed == {"transnorm", "transnorm-uniform", "transnorm-halved"}


@pytest.mark.parametrize("change", [{"seed": 1}, {"settings": {"weight": 2.0}}, {"lr": 0.1}, {"network": {}}])
def test_the_recipe_enters_the_fingerprint(change):
    assert fingerprint(replace(TINY, **change)) != fingerprint(TINY)


def test_a_name_that_is_not_defined_is_an_error():
    with pytest.raises(ValueError, match="no 'absent'"):
        provenance.fingerprint_code(["deeptransfer.training.absent"])


def test_a_result_of_a_recipe_that_is_no_longer_known_is_stale():
    result = {"kind": "adaptation", "config": asdict(TINY), "fingerprint": fingerprint(TINY)}
    assert not is_stale(result)
    assert is_stale({**result, "config": {**result["config"], "colour": 1}})
    assert is_stale({**result, "config": {"source": "print"}})
    assert is_stale({**result, "fingerprint": "0" * 16})
    assert is_stale({**result, "config": {**result["config"], "objective": "renamed"}})
    assert is_stale({**result, "kind": "renamed"})


# A package in small: what is hashed, written in one module or spread over several.

ONE = {
    "here": """
        RATE = 2
        def double(x):
            return RATE * x
        def halve(x):
            return x / RATE
        def both(x):
            return halve(double(x))
    """,
}
MOVED = {
    "rates": "RATE = 2",
    "there": """
        from .rates import RATE
        def double(x):
            return RATE * x
        def halve(x):
            # moved
            return x / RATE
    """,
    "here": """
        from deeptransfer.there import double, halve
        def both(x):
            \"\"\"Both.\"\"\"
            return halve(double(x))
    """,
}
LOCAL_IMPORT = {**MOVED, "here": "def both(x):\n    from .there import double, halve\n    return halve(double(x))\n"}
LOCAL_IMPORT_MOVED = {
    "everything": MOVED["there"],
    "rates": MOVED["rates"],
    "here": LOCAL_IMPORT["here"].replace(".there", "deeptransfer.everything"),
}
TRADED = {**MOVED, "here": MOVED["here"].replace("import double, halve", "import double as halve, halve as double")}
OTHER_RATE = {**MOVED, "rates": "RATE = 3"}


def hashed(modules, monkeypatch):
    """The fingerprint of ``both`` in a package of these modules."""
    sources = {f"deeptransfer.{name}": textwrap.dedent(text) for name, text in modules.items()}
    with monkeypatch.context() as patched:
        patched.setattr(provenance, "_file", lambda module: Path(module) if module in sources else None)
        patched.setattr(provenance, "_source", sources.__getitem__)
        provenance._parsed.cache_clear()
        try:
            return fingerprint_code(["deeptransfer.here.both"])
        finally:
            provenance._parsed.cache_clear()


def test_a_definition_counts_by_what_it_says_not_by_where_it_stands(monkeypatch):
    assert hashed(ONE, monkeypatch) == hashed(MOVED, monkeypatch)
    assert hashed(LOCAL_IMPORT, monkeypatch) == hashed(LOCAL_IMPORT_MOVED, monkeypatch)


@pytest.mark.parametrize("changed", [TRADED, OTHER_RATE], ids=["two names trade places", "a constant far away"])
def test_what_a_name_stands_for_counts(changed, monkeypatch):
    assert hashed(changed, monkeypatch) != hashed(MOVED, monkeypatch)


def test_where_the_search_ends_may_be_named_by_any_path_that_leads_there():
    root = ["deeptransfer.runs.adaptation.train"]
    ends = [fingerprint_code(root, [f"deeptransfer.{path}.fit"]) for path in ("training", "runs.adaptation")]
    assert ends[0] == ends[1] != fingerprint_code(root)
