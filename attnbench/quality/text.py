"""The text of the quality gates: where it comes from, and token windows cut from it.

attnbench ships no text of others. The default is assembled from the documentation strings of the
installed numpy and hashed, so that a record says exactly what was read. What takes long is done
once and kept in the project's cache: finding these strings, and tokenising a long text.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnbench.errors import AttnbenchError, UsageError
from attnbench.models.cached import cached
from attnbench.quality.wikitext import has_wikitext_spacing, undo_wikitext_spacing

CHARACTERS_A_TOKEN = 12  # more than any window needs; where a window needs more, all is tokenised
KEPT_CHARACTERS = 100_000  # of a text whose tokens are kept: a shorter one is tokenised as fast
DOCUMENTED = ("_core", "fft", "lib", "linalg", "ma", "matrixlib", "polynomial")


class TextTooShort(UsageError):
    """The text does not hold the windows that were asked for."""


@dataclass(frozen=True)
class Text:
    """A text, what to call it, and the sha256 (hex) of its UTF-8 bytes."""

    name: str
    text: str
    sha256: str


def named_text(name: str, text: str) -> Text:
    """The text with its hash."""
    return Text(name, text, hashlib.sha256(text.encode()).hexdigest())


@lru_cache(maxsize=1)
def default_text() -> Text:
    """Documentation strings of numpy's public functions and classes, whole, file by file.

    They are read from numpy's source, not from what is imported: scipy, for one, rewrites a
    docstring of numpy when it is imported. The same numpy gives the same bytes. Raises
    AttnbenchError where numpy was installed without its source.
    """
    root = Path(np.__file__).parent
    files = sorted(path for package in DOCUMENTED for path in (root / package).rglob("*.py"))
    sources = [path.read_bytes() for path in files if "tests" not in path.parts]
    text = cached("docstrings", _read_by(sources), lambda: _documents(sources).encode()).decode()
    if not text:
        raise AttnbenchError(
            "the installed numpy has no source to read documentation strings from",
            hint="name a text file with --text",
        )
    return named_text(f"numpy {np.__version__} docstrings", text)


def _read_by(sources: Sequence[bytes]) -> tuple[str, ...]:
    """All that the strings depend on: the sources, Python's parser, and how they are read here."""
    hashes = (hashlib.sha256(source).hexdigest() for source in sources)
    return (sys.version, hashlib.sha256(Path(__file__).read_bytes()).hexdigest(), *hashes)


def _documents(sources: Sequence[bytes]) -> str:
    """All documentation strings; one that is used twice adds nothing."""
    found = (document for source in sources for document in _docstrings(source))
    return "\n\n".join(dict.fromkeys(found))


def _docstrings(source: bytes) -> Iterator[str]:
    """Cleaned docstrings of the public functions, classes and methods of a source file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            document = ast.get_docstring(node)
            if document:
                yield document


def read_text(path: str | Path, *, undo_spacing: bool | None = None) -> Text:
    """A UTF-8 text file; WikiText's spacing is undone where it is seen, or as `undo_spacing` says.

    The name says whether it was undone; the hash is of the text as the model reads it. Raises
    UsageError when the file is missing, is not UTF-8 or is empty.
    """
    path = Path(path)
    text = _decoded(path)
    undo = has_wikitext_spacing(text) if undo_spacing is None else undo_spacing
    if undo:
        return named_text(f"{path.name}, WikiText spacing undone", undo_wikitext_spacing(text))
    return named_text(path.name, text)


def _decoded(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot read the text {path}: {error.strerror}",
            hint="name a readable UTF-8 text file, or leave it out to use numpy's docstrings",
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the text {path} is not UTF-8 (byte {error.start})",
            hint="convert it, for example: iconv -f LATIN1 -t UTF-8",
        ) from error
    if not text.strip():
        raise UsageError(f"the text {path} is empty", hint="name a text file with words in it")
    return text


def windows(tokenizer: Any, text: Text, tokens: int, count: int, seed: int) -> NDArray[np.int64]:
    """`count` windows of `tokens` token ids each, [count, tokens]; none overlap.

    Their places are drawn from `seed`, over the whole text. A long text is cut into as many
    stretches, and a window begins at a word anywhere in each: only that much of it is tokenised.
    No special token is added. Raises TextTooShort, saying how many tokens there are and what fits.
    """
    characters = tokens * CHARACTERS_A_TOKEN
    if len(text.text) >= 2 * characters * count:
        pieces = _pieces(text.text, characters, count, seed)
        cut = [_ids(tokenizer, piece)[:tokens] for piece in pieces]
        if all(len(ids) == tokens for ids in cut):
            return np.stack(cut)
    return _windows_of_all(tokenizer, text, tokens, count, seed)


def _pieces(text: str, characters: int, count: int, seed: int) -> Iterator[str]:
    """One piece of each of `count` equal stretches of the text, cut to begin with a whole word."""
    stretch = len(text) // count
    gaps = np.random.default_rng(seed).integers(0, stretch - characters + 1, size=count)
    for number, gap in enumerate(gaps):
        begin = number * stretch + int(gap)
        yield text[begin : begin + characters].partition(" ")[2]


def _windows_of_all(
    tokenizer: Any, text: Text, tokens: int, count: int, seed: int
) -> NDArray[np.int64]:
    """Windows with gaps between them that are drawn from `seed`, of the whole text's tokens."""
    ids = _ids_of_all(tokenizer, text)
    spare = len(ids) - tokens * count
    if spare < 0:
        raise _too_short(text, len(ids), tokens, count)
    gaps = np.sort(np.random.default_rng(seed).integers(0, spare + 1, size=count))
    starts = gaps + tokens * np.arange(count)
    return np.stack([ids[start : start + tokens] for start in starts])


@lru_cache(maxsize=4)
def _ids_of_all(tokenizer: Any, text: Text) -> NDArray[np.int64]:
    """Of a long text kept from one run to the next, by the text and all that a tokenizer is."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or len(text.text) < KEPT_CHARACTERS:
        return _ids(tokenizer, text.text)
    splits = str(getattr(tokenizer, "split_special_tokens", None))
    made_of = (text.sha256, repr(type(tokenizer)), splits, backend.to_str(), *_packages())
    kept = cached("tokens", made_of, lambda: _ids(tokenizer, text.text).astype("<i8").tobytes())
    return np.frombuffer(kept, "<i8").astype(np.int64)


def _packages() -> tuple[str, ...]:
    return tuple(f"{name} {version(name)}" for name in ("tokenizers", "transformers"))


def _ids(tokenizer: Any, text: str) -> NDArray[np.int64]:
    encoded = tokenizer(text, add_special_tokens=False, verbose=False)
    return np.asarray(encoded["input_ids"], dtype=np.int64)


def _counted(count: int) -> str:
    return "one window" if count == 1 else f"{count} windows"


def _too_short(text: Text, held: int, tokens: int, count: int) -> TextTooShort:
    fits = (
        f"{_counted(held // tokens)} of {tokens} tokens fit{'s' if held < 2 * tokens else ''}"
        if held >= tokens
        else f"one window of at most {held} tokens fits"
    )
    return TextTooShort(
        f"the text {text.name!r} holds {held} tokens, "
        f"too few for {_counted(count)} of {tokens} ({count * tokens} tokens)",
        hint=f"{fits}: ask for less context or fewer windows, or name a longer text with --text",
    )
