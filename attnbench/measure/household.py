"""What the tasks of one worker process share: the process held still, and the model."""

from __future__ import annotations

import torch

from attnbench.measure.tasks import Bench
from attnbench.measure.workbench import loaded_model
from attnbench.measure.world import World
from attnbench.models.info import LoadedModel


class Household:
    """Make it before a method is imported, for the model that `bench` names."""

    def __init__(self, bench: Bench) -> None:
        self.world = World(torch.device(bench.device))
        self._bench = bench
        self._loaded: LoadedModel | None = None

    def model(self) -> LoadedModel:
        """The model, loaded when it is first asked for."""
        if self._loaded is None:
            self._loaded = loaded_model(self._bench)
        return self._loaded
