"""The processes that train one model together, each on its rows of every batch (torchrun)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnbench.errors import UsageError


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run; alone unless torchrun started it."""

    rank: int = 0
    local: int = 0
    world: int = 1

    @staticmethod
    def here() -> Ranks:
        """As torchrun says it."""
        said = {name: int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK")}
        return Ranks(said["RANK"], said["LOCAL_RANK"], int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def first(self) -> bool:
        """Whether this process keeps, judges and tells."""
        return self.rank == 0

    def require_shares(self, batch: int) -> None:
        """Raise UsageError where a batch does not part into equal shares."""
        if batch % self.world:
            raise UsageError(
                f"a batch of {batch} rows does not part among {self.world} processes",
                hint="take a number of processes that divides it",
            )

    def device(self, kind: str) -> torch.device:
        """The device of this process."""
        return torch.device("cuda", self.local) if kind == "cuda" else torch.device(kind)

    def own(self, rows: Tensor) -> Tensor:
        """This process's share of a batch."""
        return rows[self.rank :: self.world]

    def together(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model with gradients averaged over the processes."""
        if self.world == 1:
            return model
        devices = [device.index] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=devices)

    def averaged(self, value: float, device: torch.device) -> float:
        """The mean over the processes."""
        if self.world == 1:
            return value
        held = torch.tensor(value, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(held)
        return float(held) / self.world

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            torch.distributed.barrier()

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Connected with the other processes, where there are any."""
        if self.world == 1:
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()
