import hashlib
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from attnbench.errors import UsageError
from attnbench.quality import text as text_module
from attnbench.quality.text import TextTooShort, default_text, named_text, read_text, windows
from attnbench.quality.wikitext import undo_wikitext_spacing


class WordTokenizer:
    """Numbers the words of a text, so that a window shows where it was cut."""

    def __init__(self):
        self.calls = 0

    def __call__(self, text, add_special_tokens, verbose):
        self.calls += 1
        return {"input_ids": list(range(len(text.split())))}


def words(count):
    return named_text(f"{count} words", "word " * count)


def test_the_default_text_is_named_hashed_and_long():
    text = default_text()
    assert text.name == f"numpy {np.__version__} docstrings"
    assert text.sha256 == hashlib.sha256(text.text.encode()).hexdigest()
    assert len(text.text.encode()) > 400_000


def test_the_default_text_is_the_same_in_another_process_whatever_is_imported(tmp_path):
    import scipy.special  # noqa: F401 it rewrites docstrings of numpy

    program = "from attnbench.quality.text import default_text; print(default_text().sha256)"
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "ATTNBENCH_CACHE": str(tmp_path / seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert hashes == {default_text().sha256}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no text or tokens that this process remembers."""
    monkeypatch.setenv("ATTNBENCH_CACHE", str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache"
    forget()


def forget():
    default_text.cache_clear()
    text_module._ids_of_all.cache_clear()


def test_the_default_text_is_parsed_once_and_is_the_same_from_the_cache(cache, monkeypatch):
    monkeypatch.setattr(text_module, "DOCUMENTED", ("fft",))
    parsed = default_text()
    forget()
    with monkeypatch.context() as patch:
        patch.setattr(text_module.ast, "parse", no_more)
        assert default_text() == parsed
    (path,) = (cache / "docstrings").iterdir()
    path.write_bytes(path.read_bytes()[:-100])
    forget()
    assert default_text() == parsed


def test_the_default_text_is_parsed_anew_where_its_sources_or_the_parser_changed():
    sources = [b"a = 1", b"b = 2"]
    reads = {text_module._read_by(each) for each in (sources, sources[:1], [b"a = 1", b"b = 3"])}
    assert len(reads) == 3
    assert text_module._read_by(sources)[0] == sys.version


def no_more(*_):
    raise AssertionError("it was made again")


class Fast:
    """A tokenizer with a backend, as transformers' fast ones have."""

    def __init__(self, backend="words", **settings):
        self.backend_tokenizer = SimpleNamespace(to_str=lambda: backend)
        self.calls = 0
        vars(self).update(settings)

    def __call__(self, text, add_special_tokens, verbose):
        self.calls += 1
        return {"input_ids": list(range(len(text.split())))}


def test_a_long_text_is_tokenised_once_for_all_runs(cache):
    text, first, second = words(25_000), Fast(), Fast()
    found = windows(first, text, tokens=9000, count=2, seed=1)
    forget()  # as another process has
    again = windows(second, text, tokens=9000, count=2, seed=1)
    assert (first.calls, second.calls) == (1, 0)
    assert again.dtype == found.dtype == np.int64
    assert (again == found).all()


@pytest.mark.parametrize(
    ("tokenizer", "count"),
    [(Fast("pieces"), 25_000), (Fast(), 25_001), (Fast(split_special_tokens=True), 25_000)],
)
def test_other_tokenizers_and_other_texts_are_tokenised_themselves(cache, tokenizer, count):
    windows(Fast(), words(25_000), tokens=9000, count=2, seed=1)
    forget()
    windows(tokenizer, words(count), tokens=9000, count=2, seed=1)
    assert tokenizer.calls == 1


def test_short_texts_and_tokenizers_without_a_backend_leave_nothing_in_the_cache(cache):
    windows(Fast(), words(1000), tokens=10, count=2, seed=1)
    windows(WordTokenizer(), words(25_000), tokens=9000, count=2, seed=1)
    assert not cache.exists()


def test_documents_are_whole_and_appear_once():
    text = default_text().text
    assert text.count("Compute the arithmetic mean along the specified axis.\n\nReturns") == 1


def test_windows_hold_consecutive_tokens_and_never_overlap():
    found = windows(WordTokenizer(), words(1000), tokens=90, count=10, seed=1)
    assert found.shape == (10, 90)
    assert found.dtype == np.int64
    assert (np.diff(found, axis=1) == 1).all()
    assert len(np.unique(found)) == 900


class NumberTokenizer:
    """Every word of the text is a number, which is its token."""

    def __init__(self, *, words_a_token=1):
        self.read = 0
        self._words = words_a_token

    def __call__(self, text, add_special_tokens, verbose):
        self.read += len(text)
        return {"input_ids": [int(word) for word in text.split()][:: self._words]}


def numbers(count):
    return named_text(f"{count} numbers", " ".join(str(n) for n in range(100_000, 100_000 + count)))


def test_of_a_long_text_only_what_the_windows_need_is_tokenised():
    tokenizer, text = NumberTokenizer(), numbers(20_000)
    found = [windows(tokenizer, text, 10, 3, seed) for seed in range(200)]
    assert tokenizer.read < 200 * 3 * 10 * 13
    assert (found[7] == windows(tokenizer, text, 10, 3, 7)).all()
    assert all((np.diff(each, axis=1) == 1).all() for each in found)
    assert all(len(np.unique(each)) == 30 for each in found)
    assert np.min(found) < 100_200
    assert np.max(found) > 119_800


def test_a_long_text_whose_tokens_are_long_is_tokenised_whole():
    tokenizer, text = NumberTokenizer(words_a_token=10), numbers(2000)
    found = windows(tokenizer, text, 10, 3, 1)
    assert tokenizer.read > len(text.text)
    assert (np.diff(found, axis=1) == 10).all()


def test_windows_follow_the_seed_and_reach_the_whole_text():
    tokenizer, text = WordTokenizer(), named_text("short words", "w " * 300)
    starts = [windows(tokenizer, text, 10, 3, seed)[:, 0] for seed in range(200)]
    assert (starts[7] == windows(tokenizer, text, 10, 3, 7)[:, 0]).all()
    assert len({tuple(start) for start in starts}) > 190
    assert np.min(starts) < 10
    assert np.max(starts) > 280


def test_a_text_of_exactly_the_needed_length_is_cut_from_its_start():
    found = windows(WordTokenizer(), words(30), tokens=10, count=3, seed=4)
    assert (found.ravel() == np.arange(30)).all()


def test_a_text_is_tokenised_once():
    tokenizer, text = WordTokenizer(), words(90)
    for seed in range(5):
        windows(tokenizer, text, 10, 2, seed)
    assert tokenizer.calls == 1


def test_a_short_text_says_how_many_tokens_it_has_and_what_fits():
    with pytest.raises(TextTooShort, match="holds 99 tokens") as short:
        windows(WordTokenizer(), words(99), tokens=40, count=3, seed=0)
    assert "2 windows of 40" in short.value.hint
    with pytest.raises(TextTooShort) as shorter:
        windows(WordTokenizer(), words(99), tokens=400, count=1, seed=0)
    assert "at most 99 tokens" in shorter.value.hint


def test_a_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "plain.txt"
    path.write_text("Grüße, said she.\n", encoding="utf-8")
    assert read_text(path) == named_text("plain.txt", "Grüße, said she.\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read"), (b"\xff\xfe\x00", "not UTF-8"), (b" \n\n", "is empty")],
)
def test_what_is_no_text_is_a_usage_error_that_says_so(tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as error:
        read_text(path)
    assert error.value.hint


ESCAPED = (
    ' The " well @-@ known " poet \'s 1 @,@ 200 lines ( of 2 @.@ 5 % ) , '
    'he didn \'t say : " yes " . \n'
)
PLAIN = 'The "well-known" poet\'s 1,200 lines (of 2.5%), he didn\'t say: "yes".\n'


def test_wikitext_spacing_is_undone():
    assert undo_wikitext_spacing(ESCAPED) == PLAIN


def test_ordinary_prose_is_left_alone():
    assert undo_wikitext_spacing(PLAIN) == PLAIN


def test_wikitext_spacing_is_noticed_in_a_file_and_named(tmp_path):
    path = tmp_path / "wiki.txt"
    path.write_text(ESCAPED)
    assert read_text(path) == named_text("wiki.txt, WikiText spacing undone", PLAIN)
    assert read_text(path, undo_spacing=False).text == ESCAPED
