"""Where in a text an arm's attention goes: what a quality record says of the map of kept tokens."""

from __future__ import annotations

import msgspec


class Excerpt(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens `begin` to `end` of the window and their text; `share` of (layer, head, step) attended
    to them, a token counting for itself."""

    begin: int
    end: int
    share: float
    text: str


class KeptMap(msgspec.Struct, frozen=True, kw_only=True):
    """Of the first window: of every bin of `bin_tokens` tokens the share that each layer attended
    to, averaged over its heads and the `steps`, in hundredths; -1 where the layer could not tell.

    `tokens` are those that the last step could see. `most` and `least` are the bins that all layers
    together attended to most and least. `share` of the tokens are attended to on average. `outside`
    is the most weight that one head's output gave, in the last step, to tokens which its layer did
    not name: a map of what was kept has none.
    """

    bin_tokens: int
    tokens: int
    steps: int
    layers: tuple[int, ...]
    hundredths: tuple[tuple[int, ...], ...]
    most: tuple[Excerpt, ...]
    least: tuple[Excerpt, ...]
    share: float
    outside: float
