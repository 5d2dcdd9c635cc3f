"""Where a model comes from: a hub id, a folder, a .gguf file, a preset, or the embedded model.

safetensors and GGUF only; nobody's code is run.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

import torch

from attnbench.errors import ModelError, NoSuchModel
from attnbench.models.folder import FolderSource
from attnbench.models.gguf import GgufSource
from attnbench.models.hub import HubSource
from attnbench.models.info import LoadedModel, ModelInfo
from attnbench.models.presets import PREFIX, PresetSource, suggest_preset

EMBEDDED = "embedded"
KINDS = "a model is a hub id, a folder, a .gguf file, preset:NAME or embedded"
EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


class Source(Protocol):
    """One kind of place that models come from."""

    def inspect(self) -> ModelInfo:
        """Facts without weights."""
        ...

    def config(self) -> Any:
        """The configuration that transformers builds the model from."""
        ...

    def load(self, dtype: torch.dtype, device: torch.device, seed: int) -> LoadedModel:
        """The model, ready to run."""
        ...


def inspect(spec: str) -> ModelInfo:
    """Facts of the model that `spec` names, from its configuration; never touches a GPU.

    Raises `ModelError` where there is no such model, or none that methods can be put into.
    """
    return source_of(spec).inspect()


def load(spec: str, dtype: torch.dtype, device: torch.device, seed: int) -> LoadedModel:
    """The model that `spec` names, in evaluation mode; `seed` draws random weights of presets."""
    return source_of(spec).load(dtype, device, seed)


def source_of(spec: str) -> Source:
    """What `spec` means: what exists on disk comes before a hub id of the same name."""
    if not spec.strip():
        raise NoSuchModel("the name of the model is empty", hint=KINDS)
    path = Path(spec).expanduser()
    if spec == EMBEDDED:
        return _embedded()
    if spec.startswith(PREFIX):
        return PresetSource(spec)
    if path.is_dir():
        return FolderSource(path, spec)
    if path.suffix == ".gguf" and path.is_file():
        return GgufSource(path, spec)
    if path.exists():
        raise ModelError(f"{spec} is neither a folder nor a .gguf file")
    if path.suffix == ".gguf" or not _HUB_ID.fullmatch(spec):
        raise NoSuchModel(f"there is no {spec}", hint="check the path")
    if get_close_matches(spec.lower(), [EMBEDDED], cutoff=0.8):
        raise NoSuchModel(f"there is no model {spec!r}; did you mean {EMBEDDED}?", hint=KINDS)
    return HubSource(spec)


def _embedded() -> FolderSource:
    if not (EMBEDDED_FOLDER / "model.safetensors").is_file():
        raise ModelError(
            "the embedded model's weights are not part of this installation",
            hint=f"install attnbench again, or name another model: {suggest_preset('')}",
        )
    return FolderSource(EMBEDDED_FOLDER, EMBEDDED, EMBEDDED)
