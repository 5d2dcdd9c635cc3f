"""The model card, written from what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Results = dict[str, Any]
Lines = Iterable[str]

CURVE_ROWS = 24


def model_card(results: Results, log: Sequence[dict[str, Any]], folder_bytes: int) -> str:
    """Markdown; `results` and `log` are what `training.train` wrote."""
    sections = (
        _head(results, folder_bytes),
        _data(results["training"]),
        _learned(results),
        _recall(results),
        _attention(results["attention"]),
        _curve(log),
        _retrain(results),
    )
    return "\n".join(line for section in sections for line in (*section, ""))


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def _paragraph(text: str) -> str:
    return " ".join(text.split())


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


def _data(training: Results) -> Lines:
    names = [name for name in training["documents"] if not name.startswith("wikitext")]
    novels = ", ".join(name.replace("-", " ") for name in names)
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
        were spliced between those of the prose: random numbers for random keys, each asked for
        again later in the row ({training["training_keys"]:,} keys; others were kept for the
        test). The digits that can be looked up weigh five times as much in the loss, the rest of
        these sentences nothing. At the beginning a quarter of the rows were random tokens that
        repeat with a period, which brings about copying early."""
    )
    return ("## Data", "", text, "", facts)


def _learned(results: Results) -> Lines:
    rows = [
        (
            name.replace("-", " "),
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
        smoothing, unigram with add-one."""
    )
    header = ("text", "tokens", "model", "bigram", "unigram", "model, bits per byte")
    return ("## Held-out perplexity", "", how, "", *_table(header, rows))


def _recall(results: Results) -> Lines:
    rows = [
        (
            tokens,
            row["needles"],
            f"**{100 * row['retrieved']:.1f} %**",
            " · ".join(f"{100 * share:.0f}" for share in row["by_depth"]),
        )
        for tokens, row in results["recall"].items()
    ]
    how = _paragraph(
        f"""One fact and {results["distractors"]} others of the same form with other keys, in prose
        of the held-out books; the question stands at the end. A hit is the whole number, four
        digits, by greedy decoding under SDPA in bfloat16. Keys are pairs of words that were never
        paired in training. Chance is 0.01 %; naming any of the numbers in the text would give
        {100 / (1 + results["distractors"]):.1f} %."""
    )
    header = ("context, tokens", "needles", "retrieved", "by depth of the fact, start to end, %")
    return ("## Retrieval", "", how, "", *_table(header, rows))


def _attention(table: Sequence[Results]) -> Lines:
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
    how = _paragraph(
        f"""Means over the second half of the queries of held-out windows of up to 1024 tokens.
        Uniform attention would have an entropy of {table[0]["uniform_nats"]:.2f} nats and share
        the mass evenly among all tokens. The sink is the first token, `<s>`; "near" is the
        query's own token and the one before."""
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
        looked up (guessing: 2.303). Every logged step is in `curves.json`."""
    )
    header = ("step", "row length", "learning rate", "prose", "looked-up digits")
    return ("## Loss curve", "", how, "", *_table(header, rows), "", *_checks(log))


def _checks(log: Sequence[Results]) -> Lines:
    checks = [line for line in log if line["kind"] == "check"]
    lengths = [key for key in checks[0] if key.startswith("recall_")]
    rows = [
        (
            f"{line['progress']:.2f}",
            f"{line['held_out_loss']:.3f}",
            *(f"{100 * line[length]:.0f} %" for length in lengths),
        )
        for line in checks
    ]
    header = ("progress", "loss", *(f"retrieved at {name[7:]}" for name in lengths))
    return ("Held out, during training, on a part of the tests above:", "", *_table(header, rows))


def _retrain(results: Results) -> Lines:
    recipe, training, used = results["recipe"], results["training"], results["environment"]
    rows = ", ".join(str(tokens) for _, tokens in recipe["phases"])
    how = _paragraph(
        f"""BOOKS is a folder with the novels named above, one `.txt` each, held-out ones included
        (UTF-8, a blank line between paragraphs); WIKITEXT holds `valid.txt` and `test.txt`. The
        recipe is `training/schedule.py`: AdamW (0.9, 0.95), weight decay
        {recipe["weight_decay"]}, dropout {recipe["dropout"]}, {recipe["batch_tokens"]:,} tokens a
        step, peak rate {recipe["peak_rate"]}, linear decay to zero over the granted time, rows of
        {rows} tokens in turn. Since the schedule follows the clock, another run ends near these
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
