"""Maps of an arm: every head of every layer, its cosine to SDPA and the softmax mass it keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.text import Text

from attnbench.errors import UsageError
from attnbench.quality.samples import GateArrays
from attnbench.quality.worst import head_means

LOST_COSINE = 0.5  # below it a head is lost either way, and the colour the same
PICTURES = (".png", ".svg", ".pdf")
INCH = 0.3  # of a figure, a head or layer


@dataclass(frozen=True)
class HeadMap:
    """One figure of an arm by layer and head [L,H], NaN where there is none; colours go from
    `low` to 1."""

    arm: str
    what: str
    low: float
    layers: tuple[int, ...]
    values: NDArray[np.float64]


def head_maps(samples: Mapping[str, GateArrays]) -> tuple[HeadMap, ...]:
    """Two maps an arm: the mean cosine, and the kept mass where it was measured."""
    maps = []
    for arm, arrays in samples.items():
        layers = tuple(int(layer) for layer in arrays.layers)
        maps.append(HeadMap(arm, "cosine to SDPA", LOST_COSINE, layers, head_means(arrays.cosine)))
        if arrays.kept_mass.size:
            mass = arrays.kept_mass[0].astype(np.float64)
            maps.append(HeadMap(arm, "kept softmax mass", 0.0, layers, mass))
    return tuple(maps)


def map_tables(maps: Sequence[HeadMap]) -> RenderableType:
    """Hundredths in colour, a row a layer."""
    return Group(*(_block(each) for each in maps))


def _block(each: HeadMap) -> RenderableType:
    heads = range(each.values.shape[1])
    lines = [
        Text(f"{each.arm}: {each.what}, in hundredths", style="bold"),
        Text("head  " + "".join(f"{head:>4}" for head in heads)),
    ]
    for layer, row in zip(each.layers, each.values, strict=True):
        line = Text(f"{layer:>5} ")
        for value in row:
            line.append(_hundredths(value), _colour(value, each.low))
        lines.append(line)
    return Group(*lines, Text())


def _hundredths(value: float) -> str:
    return "   –" if np.isnan(value) else f"{100 * value:>4.0f}"


def _colour(value: float, low: float) -> str:
    """From red at `low` to green at 1."""
    if np.isnan(value):
        return "dim"
    good = min(1.0, max(0.0, (value - low) / (1 - low)))
    red, green = round(200 * (1 - good)), round(150 * good)
    return f"white on rgb({red},{green},40)"


def require_drawable(path: Path) -> None:
    """Raise UsageError where no picture could be written, before there is one to write."""
    if path.suffix not in PICTURES:
        raise UsageError(
            f"{path} is no picture", hint=f"name a file that ends in {', '.join(PICTURES)}"
        )
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}", hint="make it, or name another file")


def draw_maps(maps: Sequence[HeadMap], path: Path) -> None:
    """Write the maps as one picture, a row an arm; UsageError where that cannot be."""
    from matplotlib.figure import Figure

    if not maps:
        raise UsageError("no arm has samples to map", hint="see why every arm failed")
    arms, kinds = ({getattr(each, name): None for each in maps} for name in ("arm", "what"))
    layers, heads = maps[0].values.shape
    size = (len(kinds) * max(4.0, INCH * heads + 2), len(arms) * max(2.2, INCH * layers + 1))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(arms), len(kinds), squeeze=False)
    for each in maps:
        axis = axes[list(arms).index(each.arm)][list(kinds).index(each.what)]
        image = axis.imshow(each.values, vmin=each.low, vmax=1.0, cmap="viridis", aspect="auto")
        axis.set_title(f"{each.arm}\n{each.what}", fontsize=8)
        axis.set(xlabel="head", ylabel="layer", xticks=range(heads))
        axis.set_yticks(range(layers), [str(layer) for layer in each.layers])
        axis.tick_params(labelsize=6)
        figure.colorbar(image, ax=axis, extend="min" if each.low else "neither")
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise UsageError(
            f"the maps cannot be written to {path}: {error}", hint="name another file"
        ) from error
