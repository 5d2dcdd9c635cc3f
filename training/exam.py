"""The exam of a trained model, on texts and keys that it never saw.

The training run takes it as a whole. Its retrieval part can be taken again by what was saved:
`python -m training.exam --help`.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from attnbench.quality.recall import Needle
from training.baselines import Bigram, Unigram
from training.corpus import Corpus, read_held_out_books
from training.evaluate import (
    DISTRACTORS,
    Scored,
    attention_table,
    needles,
    perplexities,
    recall_table,
    score_windows,
)
from training.schedule import Recipe
from training.tokenizer import BOS, encode_document

NEEDLE_LENGTHS = (256, 512, 1024, 2048, 4096)
ALL_NEEDLES_UP_TO_TOKENS = 2048
NEEDLES_HELP = f"needles a context length; beyond {ALL_NEEDLES_UP_TO_TOKENS} fewer in proportion"


@dataclass(frozen=True)
class Exam:
    """Held-out material, tokenised once."""

    texts: dict[str, Scored]
    needles: dict[int, list[Needle]]

    @classmethod
    def build(cls, corpus: Corpus, tokenizer: Tokenizer, recipe: Recipe, count: int) -> Exam:
        bos = tokenizer.token_to_id(BOS)
        held_out = {**corpus.held_out_books, "wikitext-2-test": corpus.wikitext_test}
        window = min(2048, recipe.context)
        texts = {
            name: score_windows(
                encode_document(tokenizer, text), bos, window, len(text.encode("utf-8"))
            )
            for name, text in held_out.items()
        }
        return cls(texts, all_needles(tokenizer, corpus.held_out_books, recipe.context, count))


def all_needles(
    tokenizer: Tokenizer, books: Mapping[str, str], context: int, count: int
) -> dict[int, list[Needle]]:
    """Needles in held-out books for each of `NEEDLE_LENGTHS` up to `context` tokens.

    `count` of them, and beyond `ALL_NEEDLES_UP_TO_TOKENS` as many as hold the same tokens.
    """
    prose, bos = "\n\n".join(books.values()), tokenizer.token_to_id(BOS)
    counts = {
        tokens: count * ALL_NEEDLES_UP_TO_TOKENS // max(tokens, ALL_NEEDLES_UP_TO_TOKENS)
        for tokens in NEEDLE_LENGTHS
        if tokens <= context
    }
    return {
        tokens: needles(tokenizer, prose, tokens=tokens, count=number, bos=bos, seed=tokens)
        for tokens, number in counts.items()
    }


def final_exam(
    folder: Path, exam: Exam, training_ids: np.ndarray, vocabulary: int, device: torch.device
) -> dict[str, object]:
    """Everything that the model card reports, measured on the saved bfloat16 model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    unigram, bigram = Unigram(training_ids, vocabulary), Bigram(training_ids, vocabulary)
    texts = {
        name: perplexities(model, scored, unigram, bigram) for name, scored in exam.texts.items()
    }
    eager = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    rows = next(iter(exam.texts.values())).inputs[:16, :1024]
    return {
        "perplexity": texts,
        **recall_exam(model, exam.needles, when="by the training run"),
        "attention": attention_table(eager.to(device).eval(), rows),
    }


def recall_exam(
    model: PreTrainedModel, asked: Mapping[int, list[Needle]], when: str
) -> dict[str, object]:
    """Retrieval, and when, on what and in which arithmetic it was examined."""
    dtype = str(model.dtype).removeprefix("torch.")
    return {
        "recall": recall_table(model, asked),
        "distractors": DISTRACTORS,
        "recall_examined": {"when": when, "dtype": dtype, **environment(model.device)},
    }


def environment(device: torch.device) -> dict[str, str]:
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else f"CPU, {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def examine_again(
    folder: Path, results: Mapping[str, Any], books: Mapping[str, str], count: int, device: str
) -> dict[str, Any]:
    """`results` with the retrieval of the model saved in `folder` in place of what they said.

    In float32 on a CPU, where bfloat16 is slow, and in the weights' own bfloat16 elsewhere.
    """
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    asked = all_needles(tokenizer, books, model.config.max_position_embeddings, count)
    return {**results, **recall_exam(model, asked, when="after training, on the saved model")}


def main() -> None:
    options = _options()
    before = json.loads(options.results.read_text())
    books = read_held_out_books(options.books)
    after = examine_again(options.model, before, books, options.needles, options.device)
    options.results.write_text(json.dumps(after, indent=1) + "\n")
    print(json.dumps(after["recall"], indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Examine a saved model's retrieval again.")
    parser.add_argument("--model", type=Path, required=True, help="folder of the saved model")
    parser.add_argument("--books", type=Path, required=True, help="folder with the held-out novels")
    parser.add_argument("--results", type=Path, required=True, help="results.json to change")
    parser.add_argument("--needles", type=int, default=200, help=NEEDLES_HELP)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
