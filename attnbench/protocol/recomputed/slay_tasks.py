"""Seven of SLAY's synthetic tasks, as its generators are described.

Each takes a generator and a count, and returns tokens and targets, [sequences, scored places].
Source: azettaai/slay @1bb01c1; lengths and vocabularies are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

Whole = npt.NDArray[np.int64]
Task = tuple[Whole, Whole]


def copy(rng: np.random.Generator, sequences: int) -> Task:
    """Every token is its own target."""
    tokens = rng.integers(0, 32, (sequences, 32))
    return tokens, tokens.copy()


def long_copy(rng: np.random.Generator, sequences: int) -> Task:
    """The same over 256 places."""
    tokens = rng.integers(0, 32, (sequences, 256))
    return tokens, tokens.copy()


def noisy_copy(rng: np.random.Generator, sequences: int) -> Task:
    """The first half is copied; the second, three tenths of it noise, has target zero."""
    tokens = rng.integers(0, 32, (sequences, 64))
    tokens[:, 32:] = np.where(rng.random((sequences, 32)) < 0.3, tokens[:, 32:], tokens[:, :32])
    targets = tokens.copy()
    targets[:, 32:] = 0
    return tokens, targets


def retrieval(rng: np.random.Generator, sequences: int) -> Task:
    """The needle, the vocabulary's last token, lies at a random place; asked at the last one."""
    tokens = rng.integers(0, 62, (sequences, 64))
    places = rng.integers(0, 62, sequences)
    tokens[np.arange(sequences), places] = 63
    tokens[:, -1] = 62
    needles = tokens[np.arange(sequences), places]
    return tokens[:, -1:], needles[:, None]


def selective_copy(rng: np.random.Generator, sequences: int) -> Task:
    """Eight places of the first half are marked; the tokens after them are the targets from 32 on.

    A token that a later mark overwrites was read before.
    """
    tokens = rng.integers(0, 31, (sequences, 64))
    targets = np.zeros_like(tokens)
    for row, target in zip(tokens, targets, strict=True):
        for i, place in enumerate(np.sort(rng.choice(32, 8, replace=False))):
            row[place] = 31
            target[32 + i] = row[place + 1] if place + 1 < 32 else 0
    return tokens, targets


def stack(rng: np.random.Generator, sequences: int) -> Task:
    """A pop has the popped value for target, all else zero; what is pushed is not shown."""
    tokens = rng.integers(0, 30, (sequences, 32))
    targets = np.zeros_like(tokens)
    for row, target in zip(tokens, targets, strict=True):
        held: list[int] = []
        for place in range(32):
            if held and rng.random() < 0.3:
                row[place], target[place] = 31, held.pop()
            elif rng.random() < 0.5:
                row[place] = 30
                held.append(int(rng.integers(0, 30)))
    return tokens, targets


def histogram(rng: np.random.Generator, sequences: int) -> Task:
    """The first five places have the counts of tokens 0 to 4 for targets, the others zero."""
    tokens = rng.integers(0, 16, (sequences, 32))
    targets = np.zeros_like(tokens)
    for token in range(5):
        targets[:, token] = np.sum(tokens == token, axis=1)
    return tokens, targets


MAKE: Mapping[str, Callable[[np.random.Generator, int], Task]] = {
    "copy": copy,
    "histogram": histogram,
    "long_copy": long_copy,
    "noisy_copy": noisy_copy,
    "retrieval": retrieval,
    "selective_copy": selective_copy,
    "stack": stack,
}
