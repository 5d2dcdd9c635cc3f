"""Maps of an arm: every head of every layer, its cosine to SDPA and the softmax mass it keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.text import Text

from attnbench.errors import UsageError
from attnbench.quality.samples import GateArrays
from attnbench.quality.worst import head_means
from attnbench.report.text_maps import TextMap
from attnbench.report.words import ABSENT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

LOST_COSINE = 0.5  # below it a head is lost either way, and the colour the same
LEAST_RANGE = 1e-4  # of the colours: below it all heads are alike
PICTURES = (".png", ".svg", ".pdf")
INCH = 0.3  # of a figure, a head or layer
UNITS = {2: "hundredths", 4: "ten-thousandths"}


@dataclass(frozen=True)
class HeadMap:
    """One figure of an arm by layer and head [L,H], NaN where there is none; colours go from
    `low` to 1."""

    arm: str
    what: str
    low: float
    layers: tuple[int, ...]
    values: NDArray[np.float64]

    @property
    def worst(self) -> str:
        """The lowest head, in words."""
        if np.isnan(self.values).all():
            return "no head has one"
        layer, head = np.unravel_index(np.nanargmin(self.values), self.values.shape)
        value = self.values[layer, head]
        return f"lowest {value:.{self.digits}f}: layer {self.layers[layer]}, head {head}"

    @property
    def digits(self) -> int:
        """Decimals that tell the heads apart."""
        return 2 if 1 - self.low > 0.1 else 4

    @property
    def cells(self) -> tuple[int, int]:
        """By which a picture grows."""
        return self.values.shape[0], self.values.shape[1]

    def draw(self, axis: Axes) -> AxesImage:
        """As a picture."""
        image = axis.imshow(self.values, vmin=self.low, vmax=1.0, cmap="viridis", aspect="auto")
        axis.set_title(f"{self.arm}\n{self.what}\n{self.worst}", fontsize=8)
        axis.set(xlabel="head", ylabel="layer", xticks=range(self.values.shape[1]))
        axis.set_yticks(range(len(self.layers)), [str(layer) for layer in self.layers])
        return image


def head_maps(samples: Mapping[str, GateArrays]) -> tuple[HeadMap, ...]:
    """Two maps an arm: the mean cosine, and the kept mass where it was measured."""
    maps = []
    for arm, arrays in samples.items():
        layers = tuple(int(layer) for layer in arrays.layers)
        maps.append(_map(arm, "cosine to SDPA", LOST_COSINE, layers, head_means(arrays.cosine)))
        if arrays.kept_mass.size:
            mass = arrays.kept_mass[0].astype(np.float64)
            maps.append(_map(arm, "kept softmax mass", 0.0, layers, mass))
    return tuple(maps)


def _map(
    arm: str, what: str, lost: float, layers: tuple[int, ...], values: NDArray[np.float64]
) -> HeadMap:
    """With colours over the range that its heads take, no lower than `lost`."""
    lowest = float(np.nanmin(values)) if np.isfinite(values).any() else lost
    low = max(lost, min(lowest, 1 - LEAST_RANGE))
    return HeadMap(arm, what, low, layers, values)


def map_tables(maps: Sequence[HeadMap]) -> RenderableType:
    """Numbers in colour, a row a layer: hundredths, or ten-thousandths where all are near 1."""
    return Group(*(_block(each) for each in maps))


def _block(each: HeadMap) -> RenderableType:
    heads = range(each.values.shape[1])
    lines = [
        Text(f"{each.arm}: {each.what}, in {UNITS[each.digits]}; {each.worst}", style="bold"),
        Text("head  " + "".join(f"{head:>{each.digits + 2}}" for head in heads)),
    ]
    for layer, row in zip(each.layers, each.values, strict=True):
        line = Text(f"{layer:>5} ")
        for value in row:
            line.append(_whole(value, each.digits), _colour(value, each.low))
        lines.append(line)
    return Group(*lines, Text())


def _whole(value: float, digits: int) -> str:
    width = digits + 2
    return f"{ABSENT:>{width}}" if np.isnan(value) else f"{10**digits * value:>{width}.0f}"


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


def draw_maps(maps: Sequence[HeadMap | TextMap], path: Path) -> None:
    """Write the maps as one picture, a row an arm; UsageError where that cannot be."""
    from matplotlib.figure import Figure

    if not maps:
        raise UsageError("no arm has samples to map", hint="see why every arm failed")
    arms, kinds = ({getattr(each, name): None for each in maps} for name in ("arm", "what"))
    rows, columns = (max(each.cells[axis] for each in maps) for axis in (0, 1))
    size = (len(kinds) * max(4.0, INCH * columns + 2), len(arms) * max(2.4, INCH * rows + 1.2))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(arms), len(kinds), squeeze=False)
    for each in maps:
        axis = axes[list(arms).index(each.arm)][list(kinds).index(each.what)]
        image = each.draw(axis)
        axis.tick_params(labelsize=6)
        below = bool(np.nanmin(each.values.astype(np.float64), initial=1.0) < each.low)
        figure.colorbar(image, ax=axis, extend="min" if below else "neither")
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise UsageError(
            f"the maps cannot be written to {path}: {error}", hint="name another file"
        ) from error
