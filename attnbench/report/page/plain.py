"""Text from a ledger, as it may be shown: what would control a reader's view is made visible."""

from __future__ import annotations

from unicodedata import category

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
_KEPT = frozenset("\n\t")


def plain(text: str) -> str:
    """The text without control characters: neither XML nor TeX holds them, and marks of writing
    direction would show other words than were written."""
    if text.isprintable():
        return text
    return "".join(REPLACEMENT if _is_unseen(c) else c for c in text)


def one_line(text: str) -> str:
    return " ".join(plain(text).split())


def first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def shorten(text: str, longest: int) -> str:
    """Its beginning, where there is more than so many characters."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _is_unseen(character: str) -> bool:
    return category(character) in _UNSEEN and character not in _KEPT
