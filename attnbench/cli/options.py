"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

LedgerPath = Annotated[
    Path, typer.Option("--ledger", envvar="ATTNBENCH_LEDGER", help="The ledger file.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
ShowPlan = Annotated[
    bool, typer.Option("--plan", help="Show arms, memory and minutes; run nothing.")
]
Evidence = Annotated[str, typer.Option(help="A record's id, or text that says where to look.")]
DEFAULT = Path("ledger/ledger.jsonl")
