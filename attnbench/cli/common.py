"""What the commands that measure share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

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
    """Whole numbers between commas, each once; one that is named again is said to be left out.

    Raises `UsageError` for anything else.
    """
    try:
        named = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"{option} {text} is no list of whole numbers",
            hint=f"{option} 4, or with commas {option} 1,4",
        ) from None
    once = tuple(dict.fromkeys(named))
    if again := [str(number) for number in once if named.count(number) > 1]:
        said = f"{option} names {' and '.join(again)} more than once, which is measured once"
        typer.echo(f"note: {said}", err=True)
    return once
