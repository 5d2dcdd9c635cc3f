"""The loss curve as an SVG picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 52, 700, 16, 312
TOP_NATS = 7
STEP_TICKS = 5
SERIES = {
    "prose_loss": ("prose, training", "#1f77b4"),
    "recall_loss": ("digits that can be looked up, training", "#d62728"),
}
HELD_OUT = ("prose, held out", "#111111")


def loss_curve_svg(log: Sequence[dict[str, Any]]) -> str:
    """Every logged loss against the step, in nats a token; held-out loss as dots."""
    steps = [line for line in log if line["kind"] == "step"]
    last = steps[-1]["step"]
    marks = [*_grid(last), *_legend()]
    for name, (_, colour) in SERIES.items():
        points = " ".join(_at(line["step"], line[name], last) for line in steps if name in line)
        marks.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
    for step, loss in _held_out(log):
        x, y = _at(step, loss, last).split(",")
        marks.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{HELD_OUT[1]}"/>')
    return "\n".join((_opening(), *marks, "</svg>", ""))


def _held_out(log: Sequence[dict[str, Any]]) -> Iterable[tuple[int, float]]:
    """Each held-out loss with the last step logged before it."""
    step = 0
    for line in log:
        step = line.get("step", step)
        if line["kind"] == "check":
            yield step, line["held_out_loss"]


def _at(step: float, nats: float, last: int) -> str:
    x = LEFT + (RIGHT - LEFT) * step / last
    y = BOTTOM - (BOTTOM - TOP) * nats / TOP_NATS
    return f"{x:.1f},{y:.1f}"


def _opening() -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    )


def _grid(last: int) -> Iterable[str]:
    for nats in range(TOP_NATS + 1):
        y = _at(0, nats, last).split(",")[1]
        yield f'<path d="M{LEFT} {y}H{RIGHT}" stroke="#dddddd"/>'
        yield f'<text x="{LEFT - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{nats}</text>'
    for tick in range(STEP_TICKS + 1):
        step = last * tick // STEP_TICKS
        x = _at(step, 0, last).split(",")[0]
        yield f'<text x="{x}" y="{BOTTOM + 18}" text-anchor="middle">{step:,}</text>'
    middle = (TOP + BOTTOM) // 2
    yield f'<text x="{(LEFT + RIGHT) // 2}" y="{HEIGHT - 8}" text-anchor="middle">step</text>'
    yield (
        f'<text x="14" y="{middle}" text-anchor="middle" '
        f'transform="rotate(-90 14 {middle})">nats a token</text>'
    )


def _legend() -> Iterable[str]:
    for row, (name, colour) in enumerate((*SERIES.values(), HELD_OUT)):
        y = TOP + 16 + 18 * row
        yield f'<rect x="{RIGHT - 250}" y="{y - 9}" width="10" height="10" fill="{colour}"/>'
        yield f'<text x="{RIGHT - 234}" y="{y}">{name}</text>'
