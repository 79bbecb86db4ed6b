"""The names of domains, and how messages list them."""

from __future__ import annotations

from collections.abc import Sequence

DOMAINS = ("source", "target")


def domain_names(domains: int | Sequence[str]) -> tuple[str, ...]:
    """Return the names of K domains: those given, ``("source", "target")`` for 2, ``("0", "1", …)`` for other K."""
    if isinstance(domains, int):
        names = DOMAINS if domains == 2 else tuple(map(str, range(domains)))
    else:
        names = () if isinstance(domains, str) else tuple(domains)
    if not names or isinstance(domains, bool) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"domains must be a number from 1 on, or a sequence of names, got {domains!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"the names of the domains must differ, got {domains!r}")
    return names


def listed(names: Sequence[str]) -> str:
    """The names as a message lists them: 'a', 'b' or 'c'."""
    *first, last = map(repr, names)
    return f"{', '.join(first)} or {last}" if first else last


def rows_of_each(names: Sequence[str], counts: Sequence[int]) -> str:
    """The rows of each domain as a message lists them: 3 source and 2 target rows."""
    *first, last = (f"{count} {name}" for name, count in zip(names, counts, strict=True))
    return f"{', '.join(first)} and {last} rows" if first else f"{last} rows"
