"""The colours of page and figures, by what they say, for light and dark.

Blue against vermilion, as in Okabe and Ito's set for colour-blind readers (2008), made darker or
lighter until text in them has a contrast of 4.5 with the ground; no colour is the only sign of
anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

LIGHT: Mapping[str, str] = MappingProxyType(
    {
        "ground": "#fdfdfb",
        "raised": "#f5f5f1",
        "ink": "#1d2126",
        "soft": "#5d646d",
        "line": "#dcdcd5",
        "link": "#17588f",
        "good": "#00609c",
        "bad": "#b34000",
        "open": "#75600a",
        "void": "#8f3f73",
        "plain": "#5d646d",
    }
)
DARK: Mapping[str, str] = MappingProxyType(
    {
        "ground": "#14171a",
        "raised": "#1c2024",
        "ink": "#e4e6e8",
        "soft": "#9aa3ad",
        "line": "#333a41",
        "link": "#8cc1f0",
        "good": "#64b5ee",
        "bad": "#f08a55",
        "open": "#d9bd55",
        "void": "#d99bc2",
        "plain": "#9aa3ad",
    }
)
# What a verdict is drawn and printed in; what is in none of these is plain.
TONES: Mapping[str, str] = MappingProxyType(
    {
        "SUPPORTED": "good",
        "FASTER": "good",
        "SMALLER": "good",
        "PASS": "good",
        "FALSIFIED": "bad",
        "SLOWER": "bad",
        "LARGER": "bad",
        "KILL": "bad",
        "INCONCLUSIVE": "open",
        "MARGINAL": "open",
        "VOID": "void",
        "retracted": "void",
        "tainted": "void",
        "taken back": "void",
    }
)
# A mark of its own for each tone, so that a figure reads without colours.
MARKERS: Mapping[str, str] = MappingProxyType(
    {"good": "o", "bad": "s", "open": "D", "void": "X", "plain": "o"}
)


def tone(verdict: str) -> str:
    return TONES.get(verdict, "plain")
