"""A model in a local folder: config.json, safetensors, perhaps a tokenizer; no code, no pickle."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnbench.errors import ModelError
from attnbench.models.architecture import describe, first_sentence
from attnbench.models.info import LoadedModel, ModelInfo
from attnbench.models.quietly import without_bars

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class FolderSource:
    """A folder on disk; `spec` and `kind` are what the user asked for to get here."""

    path: Path
    spec: str
    kind: str = "local"

    def inspect(self) -> ModelInfo:
        """Facts of the model, with the hash of its weight files."""
        files = weight_files(self.path)
        return describe(self.config(), self.spec, self.kind, "trained", files_sha256(files))

    def inspect_configuration(self) -> ModelInfo:
        """The same facts where the weights are not here: no identity."""
        return describe(self.config(), self.spec, self.kind, "trained", "")

    def load(self, dtype: torch.dtype, device: torch.device, seed: int = 0) -> LoadedModel:
        """The model with its tokenizer; a folder without one gives None for it."""
        del seed  # nothing is drawn
        info = self.inspect()
        module = self._weights(dtype).to(device).eval().requires_grad_(False)
        return LoadedModel(module, info, self.tokenizer())

    def config(self) -> Any:
        """The model's configuration, in transformers' own type."""
        from transformers import AutoConfig

        if not (self.path / "config.json").is_file():
            raise ModelError(
                f"{self.path} has no config.json",
                hint="name a folder that save_pretrained wrote, or a .gguf file",
            )
        try:
            config = AutoConfig.from_pretrained(
                self.path, local_files_only=True, trust_remote_code=False
            )
        except (ValueError, OSError, KeyError, TypeError) as e:
            raise ModelError(
                f"{self.path}/config.json describes no model that can be used: {first_sentence(e)}",
                hint="models that bring their own code are not run",
            ) from e
        if getattr(config, "quantization_config", None):
            raise ModelError(
                f"{self.spec} holds quantised weights",
                hint="use the model's unquantised version, or a .gguf file of it",
            )
        return config

    def _weights(self, dtype: torch.dtype) -> nn.Module:
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM

        from_pretrained: Any = AutoModelForCausalLM.from_pretrained
        module: nn.Module
        try:
            with without_bars():
                module, report = from_pretrained(
                    self.path,
                    dtype=dtype,
                    attn_implementation="sdpa",
                    use_safetensors=True,
                    local_files_only=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                )
        except (ValueError, OSError, KeyError, RuntimeError, SafetensorError) as e:
            raise ModelError(
                f"the weights of {self.spec} cannot be read: {e}",
                hint="fetch the files again: they may be incomplete",
            ) from e
        if report["missing_keys"]:
            missing = ", ".join(sorted(report["missing_keys"])[:3])
            raise ModelError(
                f"{self.spec} lacks {len(report['missing_keys'])} weights, among them {missing}",
                hint="the files do not belong to this config.json",
            )
        return module

    def tokenizer(self) -> Any | None:
        """Its tokenizer; None where the folder has none."""
        from transformers import AutoTokenizer

        if not any((self.path / name).is_file() for name in _TOKENIZERS):
            return None
        try:
            return AutoTokenizer.from_pretrained(
                self.path, local_files_only=True, trust_remote_code=False
            )
        except (ValueError, OSError, KeyError, ImportError) as e:
            raise ModelError(
                f"the tokenizer of {self.spec} cannot be read: {e}",
                hint="fetch its files again, or remove them to run without quality",
            ) from e


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model, complete; raises `ModelError` where there are none."""
    index = folder / "model.safetensors.index.json"
    files = _indexed_files(index) if index.is_file() else sorted(folder.glob("*.safetensors"))
    if files:
        return files
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder} holds only pickled weights ({pickles[0]}), which can run code when read",
            hint="convert them with save_pretrained, which writes safetensors",
        )
    raise ModelError(f"{folder} has no .safetensors file", hint="fetch the model's weights")


def files_sha256(files: list[Path]) -> str:
    """The hash of one file, or of the list of several files' hashes and names."""
    if len(files) == 1:
        return file_sha256(files[0])
    lines = "".join(f"{file_sha256(path)}  {path.name}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Streamed, so that its size does not matter."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _indexed_files(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as e:
        raise ModelError(f"{index} is no index of weights: {e}") from e
    files = [index.parent / name for name in names]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise ModelError(
            f"{index.parent} lacks {len(missing)} of {len(files)} weight files: {missing[0]}",
            hint="fetch the model again",
        )
    return files
