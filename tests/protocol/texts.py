"""Protocol files that a test is about: a good one, and the same with something changed."""

from __future__ import annotations

from attnbench.protocol.document import ProtocolFile
from attnbench.protocol.reading import Source, read

SPEED = """\
id = "faster"
title = "INT8 is faster"
source = "a test"
arms = ["int8_kv", "sink_window,window=64"]

[claim]
statement = "int8_kv is at least 1.4 times faster"
arm = "int8_kv"
direction = "at-least"
bound = 1.4
reach = "this-model"

[[cell]]
model = "embedded"
context = 1024
dtype = "float32"
device = "cpu"
scope = "step"
mode = "eager"

[control]
arm = "sink_window,window=64"
direction = "at-least"
bound = 1.1
why = "It reads less."

[publish]
if_holds = "It is faster."
if_fails = "It is not faster."
void_if = ["the control is not found"]
"""
ORDER = """\
id = "order"
title = "The second looks faster"
source = "a test"

[claim]
statement = "Whoever is measured second looks about 9 % faster"
quantity = "order-effect"
direction = "about"
bound = 1.09
tolerance = 0.02
reach = "universal"

[[cell]]
model = "embedded"
context = 64
dtype = "float32"
device = "cpu"
scope = "attention"
mode = "eager"

[schedule]
preset = "quick"
sessions = 3

[publish]
if_holds = "There is such an effect."
if_fails = "There is no such effect."
void_if = ["blocks do not agree"]
"""


def changed(text: str, *changes: tuple[str, str]) -> str:
    """The text with each first replaced by its second; both must be there to be replaced."""
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


def source_of(text: str = SPEED, *changes: tuple[str, str]) -> Source:
    return read(changed(text, *changes).encode(), "a file")


def file_of(text: str = SPEED, *changes: tuple[str, str]) -> ProtocolFile:
    return source_of(text, *changes).file


QUALITY = """\
id = "as-good"
title = "INT8 is as good"
source = "a test"
arms = ["int8_kv", "sink_window,window=64"]

[claim]
statement = "int8_kv keeps a cosine of .99"
arm = "int8_kv"
quantity = "cosine"
direction = "at-least"
bound = 0.99
reach = "this-model"

[[cell]]
model = "embedded"
context = 1024
dtype = "float32"
device = "cpu"
scope = "step"
mode = "eager"

[control]
arm = "sink_window,window=64"
direction = "at-most"
bound = 0.9
why = "It leaves tokens out."

[[require]]
arm = "int8_kv"
quantity = "kept-share"
least = 0.99
why = "It attends to all."

[publish]
if_holds = "It is as good."
if_fails = "It is not as good."
void_if = ["the control is not found"]
"""
