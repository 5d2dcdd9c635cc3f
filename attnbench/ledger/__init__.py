"""An append-only, hash-chained log of what was registered, measured, decided and retracted."""

from attnbench.ledger.book import Ledger
from attnbench.ledger.canonical import Json
from attnbench.ledger.comparison import Diff, Side, diff
from attnbench.ledger.folding import State, Status, fold
from attnbench.ledger.gating import Gate, gate
from attnbench.ledger.merging import Merged, merge
from attnbench.ledger.promises import Account, Timing, account, timing_of
from attnbench.ledger.record import Kind, Record
from attnbench.ledger.remarking import concern, correct
from attnbench.ledger.repairing import Repair, plan_repair, repair
from attnbench.ledger.retraction import Reason, reinstate, retract
from attnbench.ledger.verification import (
    Checkpoint,
    Report,
    read_checkpoint,
    take_checkpoint,
    verify,
)

__all__ = [
    "Account",
    "Checkpoint",
    "Diff",
    "Gate",
    "Json",
    "Kind",
    "Ledger",
    "Merged",
    "Reason",
    "Record",
    "Repair",
    "Report",
    "Side",
    "State",
    "Status",
    "Timing",
    "account",
    "concern",
    "correct",
    "diff",
    "fold",
    "gate",
    "merge",
    "plan_repair",
    "read_checkpoint",
    "reinstate",
    "repair",
    "retract",
    "take_checkpoint",
    "timing_of",
    "verify",
]
