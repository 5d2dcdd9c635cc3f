"""A protocol file to begin with: it passes `check`, and its comments explain every key."""

from __future__ import annotations

TEMPLATE = """\
# A promise: everything that could be chosen after the numbers are there is chosen here.
# `attnbench protocol check FILE` says in words what it means, and all that is wrong with it.
id = "{id}"
title = "INT8 keys and values take fewer bytes"
source = "where the claim was made: a paper, a page, this project"

arms = ["int8_kv", "sink_window,window=64"]  # beside every exact arm that runs there
baseline = "strongest"  # of the exact arms, by a pilot; or the name of one
quality = true  # judge outputs against SDPA on real text, where weights are trained

[claim]
statement = "On the embedded model INT8 keeps at most 30 % of a float32 cache's bytes."
arm = "int8_kv"
quantity = "kv-bytes"  # of the arm over the baseline; or speed-up: baseline's time over the arm's;
# or of the quality gates: cosine, over-random, selection-skill, perplexity-change, kept-share,
# bound-violations, for which nothing is timed and [[require]] says what has to be so of an arm
direction = "at-most"  # or at-least; or about, with a tolerance relative to the bound
bound = 0.3
reach = "this-model"  # or this-gpu (a cell names it), or universal (then one place only refutes it)
keeps_quality = false  # true: quality must be PASS, and a KILL falsifies
# key = "DCR-18"  # of a claim that the ledger imported

[[cell]]  # one or more; nothing of a cell is left to the machine
model = "embedded"  # a hub id, a folder, a .gguf file, preset:NAME
context = 1024
batch = 1
dtype = "float32"
device = "cpu"
scope = "step"  # or attention
mode = "eager"  # on a GPU also graph or compiled
# gpu = "NVIDIA H100 80GB HBM3"  # where the claim is about one: elsewhere it is refused
# threads = 1
# text = "wiki.txt"  # for prompts and quality

[schedule]
preset = "canonical"  # or rigorous, sequential; counts below change it
seed = 0
# warmup_steps, untimed_steps, timed_steps, min_visit_ms, blocks, groups, sessions, looks

[decision]
rule = "first-cell"  # or every-cell
level = 0.95
aa_level = 0.99
equivalence_margin = 0.01

[control]  # an effect that is known to be there: a run that does not find it says nothing
arm = "sink_window,window=64"
direction = "at-least"
bound = 0.99
why = "It reads part of the cache and keeps all of it, so it must not look smaller."

# [gates.logit-kl]  # other bands than the default of a quality gate
# pass_to = 0.05
# kill_above = 0.3

[publish]  # written now, while nobody knows which one it will be
if_holds = "INT8 keeps at most 30 % of the bytes of an exact float32 cache."
if_fails = "INT8 keeps more than 30 % of the bytes of an exact float32 cache."
void_if = ["tensors and allocator disagree", "the sparse control looks smaller than it is"]
"""


def template(id: str) -> str:
    """The example under another name."""
    return TEMPLATE.format(id=id)
