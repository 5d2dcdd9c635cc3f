"""The bytes that models are trained on from scratch, and those held out."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from attnbench.quality.scratch_recipe import VOCABULARY, Recipe
from attnbench.quality.text import TextTooShort, default_text, read_text

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class ScratchText:
    """uint8 bytes to train on and bytes held out, their name and the hash of both."""

    name: str
    training: Bytes
    held_out: Bytes

    @property
    def sha256(self) -> str:
        """Of the training bytes, then the held-out ones."""
        digest = hashlib.sha256(self.training.tobytes())
        digest.update(self.held_out.tobytes())
        return digest.hexdigest()

    def unigram_nats(self) -> float:
        """The held-out loss of the training bytes' frequencies, each counted once more."""
        counts = np.bincount(self.training, minlength=VOCABULARY) + 1
        seen = np.bincount(self.held_out, minlength=VOCABULARY)
        return -float(seen @ np.log(counts / counts.sum())) / len(self.held_out)

    def epochs(self, tokens: int) -> float:
        """How often so many bytes go through the text."""
        return tokens / len(self.training)


def read_scratch(recipe: Recipe, path: Path | None, held_out: Path | None) -> ScratchText:
    """The first bytes of a text to train on; held out are its last, or the first of another file.

    A text as it is, WikiText's spacing included; without one numpy's documentation. Raises
    TextTooShort, saying what is needed.
    """
    text = default_text() if path is None else read_text(path, undo_spacing=False)
    all_of_it = _bytes(text.text)
    if held_out is None:
        room = len(all_of_it) - recipe.held_out_bytes
        own, name = all_of_it[max(0, room) :], text.name
    else:
        other = read_text(held_out, undo_spacing=False)
        room, own = len(all_of_it), _bytes(other.text)[: recipe.held_out_bytes]
        name = f"{text.name}, held out {other.name}"
    training = all_of_it[: min(room, recipe.training_bytes or room)] if room > 0 else all_of_it[:0]
    _require(recipe, name, training, own)
    return ScratchText(name, training, own)


def _require(recipe: Recipe, name: str, training: Bytes, held_out: Bytes) -> None:
    least = max(recipe.training_bytes, 2 * recipe.context)
    longest = 1 + max(recipe.contexts)
    if len(training) < least or len(held_out) < max(longest, recipe.held_out_bytes):
        raise TextTooShort(
            f"preset {recipe.name} trains on {least} bytes and holds out {recipe.held_out_bytes}; "
            f"{name} leaves {len(training)} and {len(held_out)}",
            hint="name a longer text with --text, another --held-out, or another --preset",
        )


def _bytes(text: str) -> Bytes:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def batch_at(text: Bytes, recipe: Recipe, seed: int, step: int) -> NDArray[np.int64]:
    """The rows of one step, the same for every scheme: int64 [batch,context + 1].

    A pure function of the seed and the step, so that training goes on after a stop as if there had
    been none.
    """
    drawn = np.random.default_rng((recipe.data_seed, seed, step))
    starts = drawn.integers(0, len(text) - recipe.context, size=recipe.batch)
    return _rows(text, starts, recipe.context)


def windows_of(text: Bytes, context: int, wanted: int) -> NDArray[np.int64]:
    """Windows that lie evenly over a text, of about `wanted` bytes: int64 [count,context+1]."""
    most = max(1, (len(text) - 1) // context)
    count = min(most, max(1, math.ceil(wanted / context)))
    starts = np.linspace(0, len(text) - context - 1, count).astype(np.int64)
    return _rows(text, starts, context)


def _rows(text: Bytes, starts: NDArray[np.int64], context: int) -> NDArray[np.int64]:
    rows: NDArray[np.int64] = text[starts[:, None] + np.arange(context + 1)].astype(np.int64)
    return rows
