"""What `--text` may name beside a file: WikiText, where the package datasets is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from attnbench.errors import AttnbenchError, UsageError
from attnbench.models.cached import cache_root

WIKITEXT = "wikitext"


def text_file(name: str) -> Path | None:
    """The file that `--text` means; None for the default text.

    `wikitext` is the test split of WikiText-2 as the package datasets has it, kept as a file in the
    project's cache, so that every worker reads the same bytes. A file of that name comes first.
    Raises UsageError where datasets is not installed.
    """
    if not name:
        return None
    path = Path(name)
    return _wikitext() if name == WIKITEXT and not path.exists() else path


def _wikitext() -> Path:
    if importlib.util.find_spec("datasets") is None:
        raise UsageError(
            "--text wikitext needs the package datasets",
            hint="run: pip install 'attnbench[datasets]', or name a text file",
        )
    import datasets

    load: Any = datasets.load_dataset
    try:
        lines = load("Salesforce/wikitext", "wikitext-2-raw-v1", split="test")["text"]
    except Exception as error:
        raise AttnbenchError(
            f"WikiText cannot be fetched: {error}", hint="name a text file with --text"
        ) from error
    path = cache_root() / "text" / "wikitext-2-test.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")
    return path
