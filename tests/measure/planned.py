"""Plans over a machine, a model and arms that are only described."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from attnbench.measure.device import DeviceFacts
from attnbench.measure.plan import DecodeRequest, Plan, PlannedArm
from attnbench.measure.tasks import Fill
from attnbench.methods.base import Family
from attnbench.models.info import ModelInfo
from attnbench.protocol.cell import Mode, Scope
from attnbench.protocol.presets import CANONICAL

CPU = DeviceFacts(
    kind="cpu",
    name="A processor",
    uuid="",
    memory_total_bytes=16 << 30,
    memory_free_bytes=8 << 30,
    memory_clock_mhz=0,
    bus_bits=0,
    driver="",
    cuda="",
    compute_capability="",
    cores=2,
)
MODEL = ModelInfo(
    spec="embedded",
    kind="embedded",
    architecture="LlamaForCausalLM",
    layers=6,
    heads=4,
    kv_heads=2,
    head_dim=64,
    hidden=256,
    vocab=4096,
    max_context=2048,
    weights="trained",
    parameters=5_000_000,
    identity="ab" * 32,
)
SDPA = PlannedArm("sdpa", "sdpa", Family.EXACT, asked_for=False)
MATH = PlannedArm(
    "sdpa,backend=math", "sdpa,backend=math", Family.EXACT, asked_for=False, pilot_only=True
)
EAGER = PlannedArm("eager_repeat_kv", "eager_repeat_kv", Family.EXACT, asked_for=False)
INT8 = PlannedArm(
    "int8_kv,impl=torch",
    "int8_kv,impl=torch",
    Family.APPROXIMATE,
    asked_for=False,
    source_sha256="ef" * 32,
)
SINK = PlannedArm(
    "sink_window,window=64,impl=torch",
    "sink_window,window=64,impl=torch",
    Family.APPROXIMATE,
    asked_for=True,
)
ZERO = PlannedArm("zero_cost", "zero_cost", Family.CONTROL, asked_for=False)
ARMS = (SDPA, MATH, EAGER, INT8, SINK, ZERO)


def request(**changes: object) -> DecodeRequest:
    return replace(DecodeRequest(model="embedded", protocol=CANONICAL), **changes)


def plan(*, weights: str = "trained", **changes: object) -> Plan:
    """A canonical run of `ARMS` in one cell."""
    described = Plan(
        request=request(),
        info=replace(MODEL, weights=weights),
        facts=CPU,
        device="cpu",
        dtype="float32",
        context=1024,
        fill=Fill.PREFILLED if weights == "trained" else Fill.SYNTHETIC,
        cells=((Scope.STEP, Mode.EAGER),),
        arms=ARMS,
        skipped=(),
        weight_bytes=20_000_000,
        cache_bytes=6_000_000,
    )
    return replace(described, **changes)


def file_of(folder: Path, text: str, name: str = "text.txt") -> Path:
    path = folder / name
    path.write_text(text)
    return path
