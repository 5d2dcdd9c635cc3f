"""A saved model that tests may damage."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.models.tiny import COMMON, build


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama saved as users have it, with a tokenizer."""
    build("llama", COMMON).save_pretrained(tmp_path / "model")
    words = {f"w{i}": i for i in range(61)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(
        tmp_path / "model"
    )
    return tmp_path / "model"
