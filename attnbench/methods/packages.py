"""Packages that some methods use and attnbench does not require: found at run time."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from attnbench.errors import Unsupported


@dataclass(frozen=True)
class Package:
    """A package by the modules that may provide it, best first, and how to get it."""

    modules: tuple[str, ...]
    install: str

    @property
    def present(self) -> str:
        """The first of its modules that is installed, without importing any; empty: none is."""
        return next(filter(is_installed, self.modules), "")

    def require(self, method: str, device: torch.device) -> None:
        """Raise `Unsupported` where the device is no CUDA GPU or no module is installed."""
        if device.type != "cuda":
            raise Unsupported(
                f"{method} needs a CUDA GPU, and the device is {device.type}",
                hint="it runs where `nvidia-smi` shows one",
            )
        if not self.present:
            raise Unsupported(
                f"{method} needs the package that has {' or '.join(self.modules)}",
                hint=self.install,
            )

    def load(self) -> Any:
        """The module itself; `Unsupported` where it is missing or cannot be imported."""
        name = self.present or self.modules[0]
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            raise Unsupported(f"{name} cannot be imported: {error}", hint=self.install) from error


def is_installed(module: str) -> bool:
    """Whether a module could be imported; of a submodule by its file, since asking Python itself
    would import the packages around it."""
    top, *parts = module.split(".")
    spec = find_spec(top)
    for part in parts:
        if spec is None or spec.submodule_search_locations is None:
            return False
        places = [str(Path(place)) for place in spec.submodule_search_locations]
        spec = PathFinder.find_spec(part, places)
    return spec is not None
