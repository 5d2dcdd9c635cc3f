"""What a run of models trained from scratch will do, decided before anything is trained."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from attnbench.errors import Unsupported, UsageError
from attnbench.ledger.canonical import Json, canonical_bytes
from attnbench.measure.device import DeviceFacts, device_facts, has_gpu
from attnbench.methods.base import Family, Method
from attnbench.methods.registry import parse, source_sha256
from attnbench.models.cached import cache_root
from attnbench.protocol.cell import Role
from attnbench.quality.scratch_ranks import Ranks
from attnbench.quality.scratch_recipe import Recipe, preset
from attnbench.quality.scratch_text import ScratchText, read_scratch

CANDIDATES = ("cy_bias",)
BASELINES = ("learned_absolute", "alibi", "sliding_window", "rope")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class TrainRequest:
    """What was asked for; empty strings and tuples leave the choice to the plan."""

    methods: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    preset: str = "smoke"
    seeds: int = 2
    seed: int = 0
    text: Path | None = None
    held_out: Path | None = None
    device: str = ""
    dtype: str = ""
    compiled: bool | None = None
    checkpoints: Path | None = None
    resume: bool = False
    threads: int = 1


@dataclass(frozen=True)
class TrainArm:
    """One scheme, with its implementation fixed."""

    spec: str
    method: Method
    role: Role
    source_sha256: str

    @property
    def label(self) -> str:
        """Its name in the run."""
        return self.method.label


@dataclass(frozen=True)
class TrainPlan:
    """All that a run depends on."""

    request: TrainRequest
    recipe: Recipe
    arms: tuple[TrainArm, ...]
    text: ScratchText
    facts: DeviceFacts
    ranks: Ranks
    device: torch.device
    dtype: str
    compiled: bool

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the models of each arm."""
        return tuple(range(self.request.seed, self.request.seed + self.request.seeds))

    @property
    def models(self) -> int:
        """How many are trained."""
        return len(self.arms) * len(self.seeds)

    @property
    def checkpoints(self) -> Path:
        """Where runs keep what they have so far, each in a folder of its own."""
        return self.request.checkpoints or cache_root() / "scratch"

    def told(self) -> dict[str, Json]:
        """What the opening record says, and what a run that goes on must have in common."""
        recipe: dict[str, Json] = dict(self.recipe.told())
        return {
            "preset": self.recipe.name,
            "recipe": recipe,
            "arms": {arm.label: arm.role.value for arm in self.arms},
            "seeds": list(self.seeds),
            "text": self.text.name,
            "text_sha256": self.text.sha256,
            "dtype": self.dtype,
            "compiled": self.compiled,
            "processes": self.ranks.world,
        }

    def identity(self) -> bytes:
        """The same, the sources of the methods and the kind of device, in one form."""
        sources: dict[str, Json] = {arm.label: arm.source_sha256 for arm in self.arms}
        return canonical_bytes({**self.told(), "sources": sources, "device": self.device.type})


def plan_training(request: TrainRequest) -> TrainPlan:
    """Decide device, dtype and arms, and read the text.

    Raises UsageError for a method that is not judged by training, for one named twice, and for
    numbers that make no sense; TextTooShort for a text that is; Unsupported where something that
    was asked for cannot run here.
    """
    recipe, ranks = preset(request.preset), Ranks.here()
    if request.seeds < 1 or request.seed < 0:
        raise UsageError(
            f"--seeds {request.seeds} from --seed {request.seed}", hint="seeds from 1, seed from 0"
        )
    ranks.require_shares(recipe.batch)
    kind = _device(request.device)
    device = ranks.device(kind)
    dtype = request.dtype or ("bfloat16" if kind == "cuda" else "float32")
    if dtype not in DTYPES:
        raise UsageError(f"models are not trained in {dtype}", hint="float32 or bfloat16")
    _use_threads(request.threads)
    return TrainPlan(
        request=request,
        recipe=recipe,
        arms=_arms(request, device),
        text=read_scratch(recipe, request.text, request.held_out),
        facts=device_facts(kind),
        ranks=ranks,
        device=device,
        dtype=dtype,
        compiled=kind == "cuda" if request.compiled is None else request.compiled,
    )


def _device(asked: str) -> str:
    if asked not in ("", "cuda", "cpu"):
        raise UsageError(f"no device is called {asked!r}", hint="there are cuda and cpu")
    return asked or ("cuda" if has_gpu() else "cpu")


def _use_threads(threads: int) -> None:
    cores = len(os.sched_getaffinity(0))
    if not 1 <= threads <= cores:
        raise UsageError(
            f"--threads {threads}: this process may use {cores} cores", hint=f"from 1 to {cores}"
        )
    torch.set_num_threads(threads)


def _arms(request: TrainRequest, device: torch.device) -> tuple[TrainArm, ...]:
    """Candidates, then baselines; of the default baselines none that is a candidate."""
    candidates = [_arm(spec, Role.CANDIDATE, device) for spec in request.methods or CANDIDATES]
    taken = {arm.label for arm in candidates}
    asked = [_arm(spec, Role.BASELINE, device) for spec in request.baselines or BASELINES]
    baselines = [arm for arm in asked if request.baselines or arm.label not in taken]
    arms = (*candidates, *baselines)
    labels = [arm.label for arm in arms]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)} is named more than once", hint="name it once")
    return arms


def _arm(spec: str, role: Role, device: torch.device) -> TrainArm:
    method = parse(spec)
    if method.family is not Family.REPLACEMENT:
        raise UsageError(
            f"{method.label} is {method.family.value}: no model is trained with it",
            hint=f"judge it in a trained model: attnbench quality {spec}",
        )
    runs = method.resolved(device)
    if getattr(runs, runs.choice, "") == "triton" and device.type != "cuda":
        raise Unsupported(
            f"{runs.label} is a Triton kernel: it needs a CUDA GPU, and the device is "
            f"{device.type}",
            hint="leave impl out, or use impl=torch",
        )
    return TrainArm(spec, runs, role, source_sha256(runs))
