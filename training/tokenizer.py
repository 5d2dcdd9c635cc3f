"""A byte-level BPE tokenizer in which every digit is a token of its own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS = "<s>", "</s>"
PARAGRAPH_GAP = "\n\n"


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE with `vocabulary` entries; encoding with special tokens puts BOS in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_paragraphs(texts), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, longest: int) -> None:
    """Write the files that `AutoTokenizer.from_pretrained(folder)` reads."""
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        model_max_length=longest,
    ).save_pretrained(folder)


def encode_document(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Token ids (int64) of a text without special tokens; threads share the paragraphs."""
    gap = tokenizer.encode(PARAGRAPH_GAP, add_special_tokens=False).ids
    encoded = tokenizer.encode_batch(text.split(PARAGRAPH_GAP), add_special_tokens=False)
    ids: list[int] = []
    for number, paragraph in enumerate(encoded):
        ids.extend(gap if number else ())
        ids.extend(paragraph.ids)
    return np.asarray(ids, dtype=np.int64)


def join_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> np.ndarray:
    """All documents as one row of token ids (int64), EOS after each."""
    eos = np.asarray([tokenizer.token_to_id(EOS)], dtype=np.int64)
    return np.concatenate([part for t in texts for part in (encode_document(tokenizer, t), eos)])


def _paragraphs(texts: Iterable[str]) -> Iterable[str]:
    return (paragraph + "\n" for text in texts for paragraph in text.split("\n"))
