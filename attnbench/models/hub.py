"""A model on the Hugging Face hub: fetched into the client's own cache, then read as a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from attnbench.errors import ModelError
from attnbench.models.folder import FolderSource
from attnbench.models.info import LoadedModel, ModelInfo
from attnbench.models.presets import suggest_preset

_CONFIGURATION = ["config.json"]
_EVERYTHING = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_COPIES = ["*/*", "consolidated*"]  # the same weights again, in other layouts


@dataclass(frozen=True)
class HubSource:
    """A hub id such as `Qwen/Qwen3-0.6B`."""

    spec: str

    def inspect(self) -> ModelInfo:
        """Facts from the configuration alone; the identity is empty until the weights are here."""
        return self._folder(_CONFIGURATION).inspect_configuration()

    def config(self) -> Any:
        """The configuration alone."""
        return self._folder(_CONFIGURATION).config()

    def load(self, dtype: torch.dtype, device: torch.device, seed: int = 0) -> LoadedModel:
        """The model, downloaded where it is not cached yet."""
        self.inspect()  # refuse by the configuration before gigabytes are fetched
        return self._folder(_EVERYTHING).load(dtype, device, seed)

    def _folder(self, patterns: list[str]) -> FolderSource:
        return FolderSource(fetch(self.spec, patterns), self.spec, "hub")


def fetch(repository: str, patterns: list[str]) -> Path:
    """The local folder of a hub model's files; every failure is a `ModelError` with a way out."""
    from huggingface_hub import errors, snapshot_download

    preset = f"; without it {suggest_preset(repository)}"
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns, ignore_patterns=_COPIES))
    except errors.GatedRepoError as e:
        raise ModelError(
            f"{repository} is gated: its licence must be accepted, and a token shown",
            hint=f"accept the licence on https://huggingface.co/{repository}, "
            f"then run `hf auth login` or set HF_TOKEN{preset}",
        ) from e
    except errors.RepositoryNotFoundError as e:
        raise ModelError(
            f"there is no model {repository} on the hub, or it is private",
            hint="check the id; for a private or gated model run `hf auth login` or set HF_TOKEN"
            + preset,
        ) from e
    except errors.HFValidationError as e:
        raise ModelError(
            f"{repository} is neither a hub id nor a local path",
            hint="a model is a hub id, a folder, a .gguf file, preset:NAME or embedded",
        ) from e
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError) as e:
        raise ModelError(
            f"{repository} is not on this machine and the hub cannot be reached "
            "(some models also need their licence accepted and a token)",
            hint=f"check the network and HF_HUB_OFFLINE{preset}",
        ) from e
    except (errors.HfHubHTTPError, OSError) as e:
        raise ModelError(f"{repository} cannot be fetched: {e}", hint=f"try again{preset}") from e
