"""Other bands of the quality gates, as the command line gives them: `GATE.LIMIT=NUMBER`."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.errors import UsageError
from attnbench.protocol.bands import GateBands
from attnbench.protocol.checks import gate_problems
from attnbench.protocol.document import GatePart, bands_over

LIMITS = GatePart.__struct_fields__
HOW = f"write GATE.LIMIT=NUMBER, a limit being one of {', '.join(LIMITS)}"


def bands_of(options: Sequence[str]) -> GateBands:
    """The default bands with these limits, such as `perplexity.pass_to=0.005`, in place of theirs.

    Raises UsageError for what a protocol file could not say either.
    """
    limits: dict[str, dict[str, float]] = {}
    for option in options:
        gate, limit, number = _read(option)
        limits.setdefault(gate, {})[limit] = number
    gates = {gate: GatePart(**changed) for gate, changed in limits.items()}
    problem = next(gate_problems(gates), None)
    if problem is not None:
        raise UsageError(
            f"--band {problem.where}: {problem.what}".replace("gates.", "", 1), hint=HOW
        )
    return bands_over(gates)


def _read(option: str) -> tuple[str, str, float]:
    name, _, number = option.partition("=")
    gate, _, limit = name.strip().partition(".")
    if limit not in LIMITS:
        raise UsageError(f"--band {option!r}: {limit!r} is no limit", hint=HOW)
    try:
        return gate, limit, float(number)
    except ValueError:
        raise UsageError(f"--band {option!r}: {number!r} is no number", hint=HOW) from None
