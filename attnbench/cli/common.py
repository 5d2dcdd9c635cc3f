"""What the commands that measure share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnbench.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from attnbench.ledger import Ledger

WIDTH_WHEN_PIPED = 200


def require_sound(book: Ledger) -> None:
    """Read all of a ledger before hours of measuring that it could not take."""
    if book.path.exists():
        for _ in book.records():
            pass


def require_appendable(book: Ledger) -> None:
    """Read all of it, and see that it could be written, before anything else is done."""
    book.require_writable()
    require_sound(book)


def console() -> Console:
    """As wide as the terminal; wide enough for every table where there is none."""
    from rich.console import Console

    own = Console()
    return own if own.is_terminal else Console(width=WIDTH_WHEN_PIPED)


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers between commas; raises `UsageError` for anything else."""
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise UsageError(
            f"{option} {text} is no list of whole numbers",
            hint=f"{option} 4, or with commas {option} 1,4",
        ) from None
