"""What is kept in the project's cache: found again, and made again where it is not as it was."""

from __future__ import annotations

import pytest

from attnbench.models.cached import cache_root, cached


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Made:
    def __init__(self, data=b"what was made"):
        self.data, self.times = data, 0

    def __call__(self):
        self.times += 1
        return self.data


def files(root):
    return [path for path in root.rglob("*") if path.is_file()]


def test_what_was_made_is_not_made_again(root):
    made = Made()
    assert [cached("words", ("a", "b"), made) for _ in range(3)] == [made.data] * 3
    assert made.times == 1
    assert len(files(root)) == 1


@pytest.mark.parametrize(
    ("kind", "made_of"), [("words", ("a", "c")), ("words", ("ab",)), ("other", ("a", "b"))]
)
def test_what_is_made_of_something_else_is_another_thing(kind, made_of):
    cached("words", ("a", "b"), Made(b"first"))
    assert cached(kind, made_of, Made(b"second")) == b"second"
    assert cached("words", ("a", "b"), Made(b"third")) == b"first"


@pytest.mark.parametrize(
    "damage",
    [
        lambda held: held[:-1],
        lambda held: held[:40],
        lambda held: b"",
        lambda held: held[:-1] + b"x",
        lambda held: b"x" + held[1:],
        lambda held: held + b"x",
    ],
)
def test_a_file_that_is_torn_or_changed_is_made_again_and_mended(root, damage):
    cached("words", ("a",), Made())
    (path,) = files(root)
    path.write_bytes(damage(path.read_bytes()))
    again = Made()
    assert [cached("words", ("a",), again) for _ in range(2)] == [again.data] * 2
    assert again.times == 1


def test_the_file_of_another_thing_is_not_taken_for_this_one(root):
    cached("words", ("a",), Made(b"of a"))
    (path,) = files(root)
    held = path.read_bytes()
    cached("words", ("b",), Made(b"of b"))
    (other,) = set(files(root)) - {path}
    other.write_bytes(held)
    assert cached("words", ("b",), Made(b"of b")) == b"of b"


def test_without_a_folder_that_can_be_written_it_is_made_each_time(root, monkeypatch):
    root.write_text("a file stands in the way")
    made = Made()
    assert [cached("words", ("a",), made) for _ in range(2)] == [made.data] * 2
    assert made.times == 2
    monkeypatch.delenv("ATTNBENCH_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("attnbench.models.cached.Path.home", _no_home)
    assert cached("words", ("a",), made) == made.data


def _no_home():
    raise RuntimeError("there is no home")


def test_what_cannot_be_made_leaves_nothing_behind(root):
    def fails():
        raise ValueError("no text")

    with pytest.raises(ValueError, match="no text"):
        cached("words", ("a",), fails)
    assert not root.exists()


def test_a_write_that_fails_leaves_no_half_of_a_file(root, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("attnbench.models.cached.Path.replace", full)
    assert cached("words", ("a",), Made()) == b"what was made"
    assert files(cache_root()) == []
