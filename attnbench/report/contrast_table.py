"""The same method on made-up data, on random weights and on the trained model, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from attnbench.protocol.appraisal import ArmQuality
from attnbench.report.appraisal_table import STYLES, appraisal_notes
from attnbench.report.words import ABSENT

PLACES = ("made-up data", "random weights")  # keys of `ArmQuality.contrast`


def contrast_table(results: Sequence[ArmQuality]) -> RenderableType:
    """A row an arm; the verdict is that on the trained model."""
    first = results[0]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("arm", overflow="fold")
    table.add_column("kept", justify="right")
    for place in (*PLACES, "trained model"):
        table.add_column(f"{place}\ncosine mean / p1", justify="right")
    table.add_column("verdict")
    for result in results:
        table.add_row(
            result.arm,
            _share(result.figures),
            *(_cosines(_made_up(result, place)) for place in PLACES),
            _cosines(result.figures),
            Text(result.verdict.quality, STYLES.get(result.verdict.quality, "")),
        )
    title = Text(f"{first.cell.model} · {first.cell.context} tokens · {first.cell.dtype}", "bold")
    why = Text(
        "made-up data: every query lies along a cluster of keys, as the authors of a static "
        "selection drew it; random weights: the same architecture, untrained. Neither earns a "
        "verdict: what is excellent there may be useless in the trained model."
    )
    notes = [Text(line) for line in appraisal_notes(results)]
    return Group(title, table, why, *notes, Text())


def _made_up(result: ArmQuality, place: str) -> dict[str, float]:
    return {} if result.contrast is UNSET else result.contrast.get(place, {})


def _cosines(found: dict[str, float]) -> str:
    if "cosine_mean" not in found:
        return ABSENT
    return f"{found['cosine_mean']:.4f} / {found['cosine_p1']:.3f}"


def _share(found: dict[str, float]) -> str:
    return f"{found['kept_share']:.1%}" if "kept_share" in found else ABSENT
