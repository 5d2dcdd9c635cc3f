"""WikiText's escaped spacing undone, so that a pretrained tokenizer sees ordinary prose.

WikiText (Merity et al. 2016, arXiv 1609.07843) was split into words by spaces: punctuation stands
alone, and a hyphen, comma or point inside a word is written ` @-@ `, ` @,@ `, ` @.@ `.
"""

from __future__ import annotations

import re

MARK = " @-@ "

_RULES = (
    (re.compile(r" @([-,.])@ "), r"\1"),  # inside a word or number
    (re.compile(r'(?<!\S)" ([^"\n]*?) "(?!\S)'), r'"\1"'),  # quotation marks, pair by pair
    (re.compile(r" ('(?:s|re|ve|ll|d|m|t)|n't)\b"), r"\1"),
    (re.compile(r" ([,.;:!?%)\]}])"), r"\1"),
    (re.compile(r"([(\[{$£]) "), r"\1"),
    (re.compile(r"(?m)^ +| +$"), ""),
)


def has_wikitext_spacing(text: str) -> bool:
    """True where the text carries WikiText's mark of a hyphen inside a word."""
    return MARK in text


def undo_wikitext_spacing(text: str) -> str:
    """The text with words and punctuation joined as in ordinary prose."""
    for pattern, joined in _RULES:
        text = pattern.sub(joined, text)
    return text
