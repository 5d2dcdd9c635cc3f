"""The text to train and test on: novels, and WikiText-2 with its spacing undone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_BOOKS = ("pride-and-prejudice", "moby-dick-or-the-whale")

_SPACING = (
    (re.compile(r" @([-,.])@ "), r"\1"),
    (re.compile(r" ([,.;:!?%)\]])"), r"\1"),
    (re.compile(r"([(\[$£]) "), r"\1"),
    (re.compile(r" ('(?:s|t|re|ve|ll|d|m)?)\b"), r"\1"),
    (re.compile(r'" ([^"\n]*?) "'), r'"\1"'),
    (re.compile(r"^ +| +$", re.MULTILINE), ""),
)


@dataclass(frozen=True)
class Corpus:
    """Documents by name. The held-out parts are never trained on, the tokenizer included."""

    training: dict[str, str]
    held_out_books: dict[str, str]
    wikitext_test: str


def undo_wikitext_spacing(text: str) -> str:
    """WikiText's tokenised form (`a @-@ b , c`) as it would be written (`a-b, c`)."""
    for pattern, plain in _SPACING:
        text = pattern.sub(plain, text)
    return text


def read_corpus(books: Path, wikitext: Path) -> Corpus:
    """Read `books/*.txt`, `wikitext/valid.txt` and `wikitext/test.txt`.

    Raises FileNotFoundError when a held-out book or a WikiText split is missing.
    """
    held_out = read_held_out_books(books)
    paths = [path for path in sorted(books.glob("*.txt")) if path.stem not in held_out]
    training = {path.stem: path.read_text(encoding="utf-8") for path in paths}
    training["wikitext-2-valid"] = _wikitext(wikitext / "valid.txt")
    return Corpus(training, held_out, _wikitext(wikitext / "test.txt"))


def read_held_out_books(books: Path) -> dict[str, str]:
    """The novels in the folder that are never trained on; FileNotFoundError when one is missing."""
    return {name: (books / f"{name}.txt").read_text(encoding="utf-8") for name in HELD_OUT_BOOKS}


def _wikitext(path: Path) -> str:
    return undo_wikitext_spacing(path.read_text(encoding="utf-8"))
