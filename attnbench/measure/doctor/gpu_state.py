"""What the GPU does now that would spoil a measurement, and what it does not tell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from attnbench.measure.doctor.finding import Finding, bad, ok, unknown, warn
from attnbench.measure.doctor.gpu import GIB
from attnbench.measure.nvml import Nvml, State
from attnbench.protocol.validity import THROTTLE_BITS

REASONS = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
BUSY_PERCENT = 5  # of a second; this process has done nothing on the GPU
RESERVED_BYTES, RESERVED_SHARE = GIB, 0.02  # the driver's own, with room; the larger counts
MARGIN_C = 10  # below the temperature at which the GPU slows itself


class GpuProcess(NamedTuple):
    """A process on the GPU that is not this one; its memory is 0 where it is not told."""

    pid: int
    name: str
    used_bytes: int
    draws: bool

    def __str__(self) -> str:
        memory = f", {self.used_bytes / GIB:.1f} GiB" if self.used_bytes else ""
        return f"{self.pid} ({self.name or 'name not shown'}{memory})"


def processes_on(nvml: Nvml) -> tuple[GpuProcess, ...]:
    """Those that compute and those that draw, each once; ask before this program starts its own."""
    found: dict[int, GpuProcess] = {}
    for kind in ("Graphics", "MPSCompute", "Compute"):
        for process in nvml.ask(f"DeviceGet{kind}RunningProcesses") or ():
            found[process.pid] = GpuProcess(
                process.pid,
                _name(nvml, process.pid),
                process.usedGpuMemory or 0,
                draws=kind == "Graphics",
            )
    return tuple(found.values())


def _name(nvml: Nvml, pid: int) -> str:
    try:
        name = nvml.api.nvmlSystemGetProcessName(pid)
    except nvml.api.NVMLError:
        return ""
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def processes(others: Sequence[GpuProcess], *, own_is_shown: bool) -> Finding:
    """Whether others use the GPU; `own_is_shown`: whether NVML lists even this program's kernel."""
    computing = [process for process in others if not process.draws]
    if computing:
        return bad(
            "processes",
            f"on the GPU: {_listed(computing)}",
            "another process on the GPU voids every latency; stop it, or wait",
            _who(computing),
        )
    if others:
        return warn(
            "processes",
            f"drawing on the GPU: {_listed(others)}",
            "what they draw takes the GPU from some steps and not from others",
            _who(others),
        )
    if own_is_shown:
        return ok("processes", "no other on the GPU")
    return unknown(
        "processes",
        "none is shown, not even this one's kernel",
        "in a container or virtual machine another process on the GPU is not seen, and voids "
        "nothing",
    )


def _listed(processes: Iterable[GpuProcess]) -> str:
    return ", ".join(map(str, processes))


def _who(processes: Iterable[GpuProcess]) -> str:
    pids = ",".join(str(process.pid) for process in processes)
    return f"ps -o pid,user,etime,args -p {pids}"


def in_use(nvml: Nvml, others: Sequence[GpuProcess]) -> Finding:
    """Memory and time that someone takes whose process is not shown."""
    memory, rates = nvml.ask("DeviceGetMemoryInfo"), nvml.ask("DeviceGetUtilizationRates")
    if memory is None:
        return unknown("GPU in use", "cannot be asked")
    used_bytes, busy_percent = memory.total - memory.free, rates.gpu if rates else 0
    seen = f"{memory.free / GIB:.1f} of {memory.total / GIB:.1f} GiB free, {busy_percent} % busy"
    show = f"nvidia-smi -i {nvml.text('DeviceGetUUID')}"
    if others:
        return ok("GPU in use", f"{seen}, by processes that are shown")
    if busy_percent >= BUSY_PERCENT:
        why = "someone computes on the GPU whose process is not shown, and would be in every figure"
        return bad("GPU in use", seen, why, show)
    if used_bytes > max(RESERVED_BYTES, RESERVED_SHARE * memory.total):
        return warn("GPU in use", seen, "someone holds memory whose process is not shown", show)
    return ok("GPU in use", seen)


def throttle(idle: int | None, busy: State) -> Finding:
    """Whether the GPU slows itself down, idle or reading its memory, by NVML's bits."""
    if idle is None:
        return unknown("throttling", "cannot be asked", "a visit that throttled would count")
    bits = (idle | int(busy.get("throttle_reasons", 0))) & THROTTLE_BITS
    named = [name for bit, name in REASONS.items() if bits & bit]
    if not named:
        return ok("throttling", "none")
    return bad(
        "throttling",
        ", ".join(named),
        "one throttled reading voids the run: cool the GPU, lower its clock or raise its power "
        "limit",
        "nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER",
    )


def power_limit(nvml: Nvml) -> Finding:
    """Whether the GPU gets less power than its maker meant."""
    limit_mw = nvml.ask("DeviceGetEnforcedPowerLimit")
    default_mw = nvml.ask("DeviceGetPowerManagementDefaultLimit")
    if limit_mw is None or default_mw is None:
        return unknown("power limit", "cannot be asked")
    seen = f"{limit_mw / 1e3:.0f} W of {default_mw / 1e3:.0f} W"
    if limit_mw >= default_mw:
        return ok("power limit", seen)
    return warn(
        "power limit",
        seen,
        "below its default the GPU caps its clock earlier, and one capped reading voids the run",
        f"sudo nvidia-smi -i {nvml.text('DeviceGetUUID')} -pl {default_mw // 1000}",
    )


def clocks(nvml: Nvml, busy: State) -> Finding:
    """Whether the SM clock is held below its maximum; NVML does not tell of a lock at it."""
    most = nvml.ask("DeviceGetMaxClockInfo", nvml.api.NVML_CLOCK_SM)
    now = busy.get("sm_clock_mhz")
    if now is None or not most:
        return unknown("clocks", "cannot be asked", "a clock that wanders would not be seen")
    if int(busy.get("throttle_reasons", 0)) & THROTTLE_BITS:
        return warn("clocks", f"SM {now} MHz of {most} MHz under load", "throttling holds it down")
    if int(now) < most:
        return ok("clocks", f"SM held at {now} MHz of {most} MHz under load")
    return unknown(
        "clocks",
        f"SM {now} MHz under load, its maximum; a lock at it is not shown",
        "a block with a clock 2 % off its median is dropped, and a tenth of them dropped voids the "
        "run; if that happens, lock the clock (-rgc ends it)",
        f"sudo nvidia-smi -i {nvml.text('DeviceGetUUID')} -lgc {most}",
    )


def temperature(nvml: Nvml) -> Finding:
    """Whether the GPU is about to slow itself."""
    api = nvml.api
    now = nvml.ask("DeviceGetTemperature", api.NVML_TEMPERATURE_GPU)
    slows = nvml.ask("DeviceGetTemperatureThreshold", api.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
    if now is None:
        return unknown("temperature", "cannot be asked")
    seen = f"{now} °C" + (f"; it slows at {slows} °C" if slows else "")
    if not slows or now <= slows - MARGIN_C:
        return ok("temperature", seen)
    return warn(
        "temperature",
        seen,
        "the GPU is about to throttle, which voids a run: let it cool, and look at its fans",
        f"nvidia-smi -i {nvml.text('DeviceGetUUID')} -q -d TEMPERATURE",
    )


def exposure(missing: Sequence[str]) -> Finding:
    """Whether everything can be read that may void a measurement; `missing` is what cannot."""
    if not missing:
        return ok("readings", "every state that is recorded beside a visit can be read")
    return unknown(
        "readings",
        f"this driver or virtual machine does not give {', '.join(missing)}",
        "the record names them, and what they would have voided is not voided",
    )
