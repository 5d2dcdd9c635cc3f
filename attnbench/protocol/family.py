"""What a method promises, and so how it may be judged."""

from __future__ import annotations

from enum import StrEnum


class Family(StrEnum):
    """What a method promises, and so how it may be judged."""

    EXACT = "exact"  # equals SDPA up to dtype error
    APPROXIMATE = "approximate"  # dropped into a pretrained model, judged against SDPA there
    REPLACEMENT = "replacement"  # changes the trained function: judged by training from scratch
    CONTROL = "control"  # nulls, ceilings, known-bad arms: never counted in an exit code
