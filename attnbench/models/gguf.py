"""A model in one .gguf file: dequantised once, then kept as safetensors in the user's cache.

transformers takes many seconds to read a GGUF file and under one to read what it was saved as, and
every worker process loads the model afresh.
"""

from __future__ import annotations

import importlib.util
import struct
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnbench.errors import ModelError
from attnbench.models.architecture import build, describe
from attnbench.models.cached import cache_root
from attnbench.models.folder import FolderSource, file_sha256
from attnbench.models.info import LoadedModel, ModelInfo
from attnbench.models.quietly import without_bars

_HEADER = struct.Struct("<4sIQQ")  # magic, version, tensors, metadata entries (GGUF 2 and 3)
# What transformers and the gguf package raise for files that they cannot make a model of.
_UNREADABLE = (
    ValueError,
    OSError,
    KeyError,
    IndexError,
    TypeError,
    RuntimeError,  # and NotImplementedError
    struct.error,
)


@dataclass(frozen=True)
class GgufSource:
    """A .gguf file on disk."""

    path: Path
    spec: str

    def inspect(self) -> ModelInfo:
        """Facts of the model; its identity is the hash of the file."""
        refuse_without_tensors(self.path)
        return describe(self.config(), self.spec, "gguf", "trained", file_sha256(self.path))

    def config(self) -> Any:
        """The configuration alone, from what the file was converted to where it was."""
        refuse_without_tensors(self.path)
        converted = sorted(_converted_models().glob(f"{file_sha256(self.path)}-*"))
        return FolderSource(converted[0], self.spec).config() if converted else self._config()

    def load(self, dtype: torch.dtype, device: torch.device, seed: int = 0) -> LoadedModel:
        """The model with dequantised weights in `dtype`, and its tokenizer."""
        del seed  # nothing is drawn
        refuse_without_tensors(self.path)
        identity = file_sha256(self.path)
        folder = _converted_models() / f"{identity}-{str(dtype).removeprefix('torch.')}"
        if not folder.is_dir():
            self._convert(folder, dtype)
        loaded = FolderSource(folder, self.spec, "gguf").load(dtype, device)
        return replace(loaded, info=replace(loaded.info, identity=identity))

    def _convert(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the model to `folder` as safetensors, whole or not at all."""
        describe(self._config(), self.spec, "gguf", "trained", "")  # refuse before reading weights
        module, tokenizer = self._read(dtype)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                whole = Path(scratch) / "model"
                module.save_pretrained(whole)
                tokenizer.save_pretrained(whole)
                _publish(whole, folder)
        except OSError as e:
            raise ModelError(
                f"the converted model cannot be kept in {folder}: {e}",
                hint="set ATTNBENCH_CACHE to a folder that can be written and has room",
            ) from e

    def _config(self) -> Any:
        from transformers import AutoConfig

        _require_packages()
        try:
            return AutoConfig.from_pretrained(self.path.parent, gguf_file=self.path.name)
        except _UNREADABLE as e:
            raise self._refusal(e) from e

    def _read(self, dtype: torch.dtype) -> tuple[Any, Any]:
        """The model, its weights unpacked, and its tokenizer."""
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        try:
            with without_bars():
                module = AutoModelForCausalLM.from_pretrained(
                    self.path.parent,
                    gguf_file=self.path.name,
                    dtype=dtype,
                    attn_implementation="sdpa",
                    quantization_config=GgufConfig(dequantize=True),
                )
            tokenizer = AutoTokenizer.from_pretrained(self.path.parent, gguf_file=self.path.name)
        except _UNREADABLE as e:
            raise self._refusal(e) from e
        return _without_history(module), tokenizer

    def _refusal(self, cause: Exception) -> ModelError:
        return ModelError(
            f"{self.path} cannot be read as a model: {cause}",
            hint="the file may be cut short, or of an architecture that transformers cannot read "
            "from GGUF; its safetensors version may work",
        )


def refuse_without_tensors(path: Path) -> None:
    """Raise `ModelError` unless `path` is a GGUF file that holds weights."""
    try:
        with path.open("rb") as stream:
            header = stream.read(_HEADER.size)
    except OSError as e:
        raise ModelError(f"{path} cannot be opened: {e.strerror}", hint="check the path") from e
    if len(header) < _HEADER.size or not header.startswith(b"GGUF"):
        raise ModelError(f"{path} is not a GGUF file", hint="fetch it again")
    if _HEADER.unpack(header)[2] == 0:
        raise ModelError(f"{path} holds a vocabulary and no weights", hint="name the model's file")


def _converted_models() -> Path:
    return cache_root() / "gguf"


def _require_packages() -> None:
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"reading a GGUF file needs {' and '.join(missing)}",
            hint="run: pip install 'attnbench[gguf]'",
        )


def _without_history(module: nn.Module) -> Any:
    """The same weights in a model that does not remember the file they were quantised in."""
    config: Any = module.config
    with torch.device("meta"):
        fresh: Any = build(config, dtype=config.dtype)
    fresh.load_state_dict(module.state_dict(), assign=True)
    fresh.tie_weights()
    return fresh


def _publish(whole: Path, folder: Path) -> None:
    """Move a finished folder to its place, unless another process was faster."""
    try:
        whole.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
