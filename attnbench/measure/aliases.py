"""One selection under two names would be measured twice, and look like a finding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import combinations

from attnbench.errors import UsageError
from attnbench.methods.base import Method


def refuse_aliases(methods: Sequence[Method], context: int) -> None:
    """Raise UsageError for two methods of one class that attend to the same tokens of a context.

    Asked of methods whose tokens follow from positions alone, before anything is timed. One method
    in two implementations is no alias, nor are two that leave nothing out.
    """
    for first, second in combinations(methods, 2):
        kept = first.rows_by_position(context + 1)
        if kept is None or len(kept) > context or type(first) is not type(second):
            continue
        if kept == second.rows_by_position(context + 1) and not _implementations(first, second):
            raise UsageError(
                f"{first.label} and {second.label} keep the same {len(kept)} of {context + 1} "
                "tokens: they are one selection under two names",
                hint="measure one of them",
            )


def _implementations(first: Method, second: Method) -> bool:
    """Whether two methods of one class differ in nothing but their implementation."""
    differing = {f.name for f in fields(first) if getattr(first, f.name) != getattr(second, f.name)}
    return differing <= {first.choice}
