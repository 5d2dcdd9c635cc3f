"""The model card, written from what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from scipy.stats import binomtest

from training.batches import ECHO_SHARE
from training.recall import ANSWER_WEIGHT

Results = dict[str, Any]
Lines = Iterable[str]

CURVE_ROWS = 24
CURVE_FILE = "loss.svg"
SMALL_WORDS = ("and", "of", "or", "the")


def model_card(results: Results, log: Sequence[dict[str, Any]], folder_bytes: int) -> str:
    """Markdown; `results` and `log` are what `training.train` wrote."""
    sections = (
        _head(results, folder_bytes),
        _data(results["training"], results["recipe"]),
        _learned(results),
        _recall(results),
        _attention(results),
        _curve(log),
        _retrain(results),
    )
    return "\n".join(line for section in sections for line in (*section, ""))


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def _paragraph(text: str) -> str:
    return " ".join(text.split())


def _title(name: str) -> str:
    """A book's title from its file name; other texts are called by their file name."""
    if name.startswith("wikitext"):
        return name
    first, *words = name.split("-")
    return " ".join(
        [first.capitalize(), *(w if w in SMALL_WORDS else w.capitalize() for w in words)]
    )


def _head(results: Results, folder_bytes: int) -> Lines:
    recipe, training = results["recipe"], results["training"]
    size = f"{recipe['layers']}, {recipe['hidden']}, {recipe['intermediate']}"
    heads = f"{recipe['heads']}, {recipe['kv_heads']}, {recipe['head_dim']}"
    rows = (
        ("parameters", f"{training['parameters']:,} (embeddings tied)"),
        ("layers, hidden, feed-forward", size),
        ("query heads, KV heads, head dimension", heads),
        ("context", f"{recipe['context']} tokens, rotary positions"),
        ("tokenizer", f"byte-level BPE, {recipe['vocabulary']} entries, digits one by one"),
        ("opening token", "`<s>`, put in front by the tokenizer"),
        ("weights", f"bfloat16 safetensors; with tokenizer {folder_bytes / 1e6:.1f} MB"),
        ("licence of the weights", "Apache-2.0"),
    )
    about = _paragraph(
        """A small causal language model in the Llama architecture, trained from scratch by this
        project so that attention methods can be judged on a trained model anywhere, without a
        download. It is an instrument: it writes no useful text."""
    )
    return ("# The embedded model", "", about, "", *_table(("", ""), rows))


def _data(training: Results, recipe: Results) -> Lines:
    names = [name for name in training["documents"] if not name.startswith("wikitext")]
    novels = ", ".join(map(_title, names))
    text = _paragraph(
        f"""{training["training_tokens"]:,} tokens: {len(names)} novels in the public domain
        ({novels}) and the validation split of WikiText-2 (Merity et al. 2016; text from
        Wikipedia, CC BY-SA 3.0), its spacing undone. *Pride and Prejudice*, *Moby-Dick* and
        WikiText-2's test split were held out as a whole, from the tokenizer too. The texts are
        not part of the project. Documentation strings of Python packages, attnbench's default
        evaluation text, were never trained on."""
    )
    facts = _paragraph(
        f"""In half of the training rows, sentences like "The number of the quiet window is 4071."
        were spliced between those of the prose: random numbers for random keys, some of them
        stated again later in the row ({training["training_keys"]:,} keys; others were kept for
        the test). Digits that can be looked up weigh {ANSWER_WEIGHT:g} times as much as prose in
        the loss, the rest of these sentences nothing. In the first {recipe["echo_until"]:.0%} of
        the time {ECHO_SHARE:.0%} of the rows were random tokens that repeat with a period, which
        brings about copying early."""
    )
    return ("## Data", "", text, "", facts)


def _learned(results: Results) -> Lines:
    rows = [
        (
            _title(name),
            f"{row['tokens']:,}",
            f"**{row['model']:.1f}**",
            f"{row['bigram']:.1f}",
            f"{row['unigram']:.1f}",
            f"{row['bits_per_byte']:.3f}",
        )
        for name, row in results["perplexity"].items()
    ]
    how = _paragraph(
        f"""Per token of this tokenizer, over windows of
        {min(2048, results["recipe"]["context"])} tokens that do not overlap. Baselines fitted on
        the training tokens and scored on the same targets: bigram with interpolated Kneser-Ney
        smoothing, unigram with add-one. Measured in bfloat16 on {results["environment"]["device"]}.
        In WikiText-2 rare words read `<unk>`, which is easy to guess: compare its figures with
        those of the baselines, not with other texts."""
    )
    header = ("text", "tokens", "model", "bigram", "unigram", "model, bits per byte")
    return ("## Held-out perplexity", "", how, "", *_table(header, rows))


def _recall(results: Results) -> Lines:
    rows = [
        (
            tokens,
            row["needles"],
            f"**{100 * row['retrieved']:.1f} %**",
            _share_interval(row["retrieved"], row["needles"]),
            " · ".join(f"{100 * share:.0f}" for share in row["by_depth"]),
        )
        for tokens, row in results["recall"].items()
    ]
    examined, others = results["recall_examined"], results["distractors"]
    how = _paragraph(
        f"""One fact and {others} others of the same form with other keys, in prose of the held-out
        books; the question, up to the space before the number, stands at the end. A hit is the
        whole number, four digits, by greedy decoding under SDPA. No key was a key in training.
        Guessing digits finds 0.01 %, naming any number in the text {100 / (1 + others):.1f} %.
        Examined {examined["when"]}, in {examined["dtype"]} on {examined["device"]} (torch
        {examined["torch"]}, transformers {examined["transformers"]}); the interval is
        Clopper and Pearson's."""
    )
    header = ("context, tokens", "needles", "retrieved", "95 % interval", "by depth, %")
    note = "By depth: in each fifth of the text, from its start to its end."
    return ("## Retrieval", "", how, "", *_table(header, rows), "", note)


def _share_interval(share: float, count: int) -> str:
    bounds = binomtest(round(share * count), count).proportion_ci(0.95, method="exact")
    return f"{100 * bounds.low:.1f} to {100 * bounds.high:.1f} %"


def _attention(results: Results) -> Lines:
    table = results["attention"]
    rows = [
        (
            row["layer"],
            row["head"],
            f"{row['sink_share']:.3f}",
            f"{row['entropy_nats']:.2f}",
            f"{row['previous_share']:.3f}",
        )
        for row in table
    ]
    uniform, entropies = table[0]["uniform_nats"], [row["entropy_nats"] for row in table]
    largest = max(table, key=lambda row: row["sink_share"])
    book = _title(next(iter(results["perplexity"])))
    how = _paragraph(
        f"""Means over the second half of the queries in the first 16 windows of {book}, up to 1024
        tokens of each. Entropy lies between {min(entropies):.2f} and {max(entropies):.2f} nats,
        mean {sum(entropies) / len(entropies):.2f}; uniform attention would have {uniform:.2f}. The
        sink is the first token, `<s>`: no head gives it more than {largest["sink_share"]:.1%}
        (layer {largest["layer"]}, head {largest["head"]}), where uniform attention would give
        about {math.exp(-uniform):.2%}. "Near" is the query's own token and the one before."""
    )
    header = ("layer", "head", "sink share", "entropy, nats", "near share")
    return ("## Attention", "", how, "", *_table(header, rows))


def _curve(log: Sequence[Results]) -> Lines:
    steps = [line for line in log if line["kind"] == "step"]
    picked = steps[:: max(1, len(steps) // CURVE_ROWS)]
    if picked[-1] is not steps[-1]:
        picked.append(steps[-1])
    rows = [
        (
            line["step"],
            line["row_tokens"],
            f"{line['rate']:.5f}",
            f"{line['prose_loss']:.3f}",
            f"{line['recall_loss']:.4f}" if "recall_loss" in line else "none asked",
        )
        for line in picked
    ]
    how = _paragraph(
        """Nats a token; training loss with dropout, on plain prose and on digits that can be
        looked up (guessing: 2.303), each of a single batch. Every logged step is in
        `curves.json`."""
    )
    header = ("step", "row length", "learning rate", "prose", "looked-up digits")
    picture = f"![Training and held-out loss against training steps]({CURVE_FILE})"
    return ("## Loss curve", "", picture, "", how, "", *_table(header, rows), "", *_checks(log))


def _checks(log: Sequence[Results]) -> Lines:
    checks = [line for line in log if line["kind"] == "check"]
    rows = [(f"{line['progress']:.0%}", f"{line['held_out_loss']:.3f}") for line in checks]
    what = _paragraph(
        """Held-out loss during training, without dropout, on a quarter of the first text above. Its
        windows are longer than the rows that training begins with."""
    )
    return (what, "", *_table(("of the training time", "nats a token"), rows))


def _retrain(results: Results) -> Lines:
    recipe, training, used = results["recipe"], results["training"], results["environment"]
    rows = ", ".join(str(tokens) for _, tokens in recipe["phases"])
    how = _paragraph(
        f"""BOOKS is a folder with the novels named above, one `.txt` each, held-out ones included
        (UTF-8, a blank line between paragraphs); WIKITEXT holds `valid.txt` and `test.txt`. The
        recipe is `training/schedule.py`: AdamW (0.9, 0.95), weight decay
        {recipe["weight_decay"]}, dropout {recipe["dropout"]}, {recipe["batch_tokens"]:,} tokens a
        step, peak rate {recipe["peak_rate"]} after {recipe["warm_up"]:.0%} of the granted time and
        until {recipe["hold_until"]:.0%} of it, then linear decay to zero, rows of {rows} tokens in
        turn. Since the schedule follows the clock, another run ends near these
        figures, not on them."""
    )
    this = _paragraph(
        f"""This run: {training["steps"]:,} steps, {training["tokens_seen"]:,} tokens in
        {training["minutes"]:g} minutes of training, {training["wall_seconds"] / 60:.1f} in all, on
        {used["device"]} (torch {used["torch"]}, transformers {used["transformers"]}, Python
        {used["python"]}; seed {recipe["seed"]})."""
    )
    train = "python -m training.train --books BOOKS --wikitext WIKITEXT --out OUT --minutes "
    commands = (f"{train}{training['minutes']:g}", "python -m training.finish --from OUT")
    return ("## Training it again", "", "```", *commands, "```", "", how, "", this)
