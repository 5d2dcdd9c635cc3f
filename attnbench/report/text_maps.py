"""Maps of an arm over the text: which tokens every head of every layer attends to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from attnbench.protocol.kept_map import Excerpt, KeptMap
from attnbench.quality.mapped import head_shares, kept_map_of
from attnbench.quality.samples import Floats, GateArrays
from attnbench.report.page.drawing import Drawing
from attnbench.report.page.palette import LIGHT
from attnbench.report.page.plain import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SHADES = " ░▒▓█"  # from none of the steps to all
MOST_ROWS = 64  # of heads in a terminal; of more only the layers' means are shown
FALSE_WEIGHT = 1e-3  # of a head's output on tokens that its layer did not name
FINE = 20  # rows or columns of a picture
LAYER_IN = 0.22  # of the page's figure


@dataclass(frozen=True)
class TextMap:
    """How often tokens were attended to, by layer, head and bin [L,H,P]: the share of steps, NaN
    where the layer could not tell; and what the record says of it."""

    arm: str
    shares: Floats
    said: KeptMap
    what: str = "kept over the text"
    low: float = 0.0

    @property
    def values(self) -> Floats:
        """A row for each head of each layer."""
        return self.shares.reshape(-1, self.shares.shape[2])

    @property
    def cells(self) -> tuple[int, int]:
        """By which a picture grows: no finer map needs more."""
        return min(self.values.shape[0], FINE), FINE

    def draw(self, axis: Axes) -> AxesImage:
        """As a picture, white where nothing was kept."""
        layers, heads = self.shares.shape[:2]
        edge = self.values.shape[1] * self.said.bin_tokens
        image = axis.imshow(
            self.values,
            vmin=0.0,
            vmax=1.0,
            cmap="Blues",
            aspect="auto",
            interpolation="nearest",
            extent=(0, edge, layers * heads - 0.5, -0.5),
        )
        axis.set_title(f"{self.arm}\n{self.what}\n{average(self.said)}", fontsize=8)
        axis.set(xlabel="token", ylabel=f"layer ({heads} heads each)")
        axis.set_yticks(
            [row * heads + (heads - 1) / 2 for row in range(layers)],
            [str(layer) for layer in self.said.layers],
        )
        return image


def text_maps(samples: Mapping[str, GateArrays]) -> tuple[TextMap, ...]:
    """Of every arm that says what it keeps, and leaves something out."""
    found = []
    for arm, arrays in samples.items():
        said = kept_map_of(arrays)
        if said is not None:
            found.append(TextMap(arm, head_shares(arrays), said))
    return tuple(found)


def average(said: KeptMap) -> str:
    """How much is kept, and whether that is what the outputs show."""
    words = f"{said.share:.1%} of the tokens on average"
    return f"{words}; {disbelief(said)}" if is_false(said) else words


def is_false(said: KeptMap) -> bool:
    """Whether outputs show weight where the method says that it attends to nothing."""
    return not said.outside <= FALSE_WEIGHT


def disbelief(said: KeptMap) -> str:
    """For a map that is not what the outputs show."""
    return f"not so: a head gave {said.outside:.1%} of its weight to tokens that are not named"


def text_map_lines(maps: Sequence[TextMap]) -> RenderableType:
    """A row a head, or a layer where there are many; darker where more steps attended; then the
    text that is kept most and least."""
    return Group(*(_block(each) for each in maps))


def _block(each: TextMap) -> RenderableType:
    said, (layers, heads, _) = each.said, each.shares.shape
    by_layer = layers * heads > MOST_ROWS
    shown = "mean of its heads" if by_layer else "one row a head"
    title = f"{each.arm}: {each.what}, {said.bin_tokens} tokens a column, {said.steps} steps"
    lines = [Text(f"{title}; {shown}; {average(said)}", style="bold")]
    for at, layer in enumerate(said.layers):
        rows = each.shares[at].mean(axis=0, keepdims=True) if by_layer else each.shares[at]
        for head, row in enumerate(rows):
            name = f"{layer}" if by_layer else f"{layer}.{head}"
            lines.append(Text(f"{name:>7} {''.join(map(_shade, row))}"))
    return Group(*lines, *map(Text, excerpt_lines(said)), Text())


def _shade(share: float) -> str:
    if np.isnan(share):
        return "?"
    return SHADES[min(len(SHADES) - 1, int(np.ceil(share * (len(SHADES) - 1))))]


def excerpt_lines(said: KeptMap) -> Iterator[str]:
    """The tokens behind it."""
    for word, found in (("most", said.most), ("least", said.least)):
        yield from (f"  {word:>5} {in_words(each)}" for each in found)


def in_words(each: Excerpt) -> str:
    """Where, how often, and what stands there."""
    return f"{each.share:4.0%} of tokens {each.begin} to {each.end - 1}: “{plain(each.text)}”"


def kept_drawing(said: KeptMap, arm: str, name: str) -> Drawing:
    """For the page: a row a layer, a column a bin, darker where more of its heads and steps
    attended."""
    rows = len(said.layers)

    def draw(figure: Figure) -> None:
        from matplotlib.patches import Rectangle

        axes = figure.subplots()
        for row, layer in enumerate(said.hundredths):
            for column, share in enumerate(layer):
                if share > 0:
                    at = (column * said.bin_tokens, row - 0.42)
                    cell = Rectangle(at, said.bin_tokens, 0.84, linewidth=0)
                    cell.set(facecolor=LIGHT["good"], alpha=share / 100)
                    axes.add_patch(cell)
        axes.set(xlim=(0, said.tokens), xlabel="token", ylabel="layer")
        axes.set_ylim(rows - 0.4, -0.6)
        axes.set_yticks(range(rows), [str(layer) for layer in said.layers])

    return Drawing(
        name=name,
        title=f"What {arm} keeps of the text",
        note=f"By layer, over heads and {said.steps} steps; {average(said)}.",
        said=f"{arm} attends to {average(said)}",
        height_in=0.8 + LAYER_IN * rows,
        draw=draw,
    )
