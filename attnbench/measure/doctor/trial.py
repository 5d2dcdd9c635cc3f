"""Torch, a kernel and the read bandwidth tried out, in a process of its own.

`python -m attnbench.measure.doctor.trial cuda|cpu [--probe]` prints one `Trial` as JSON. The
process that asks must never hold a CUDA context: it would be one more on the GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from attnbench.errors import AttnbenchError, WorkerFailed
from attnbench.measure.answers import Bandwidth

if TYPE_CHECKING:
    from attnbench.measure.nvml import Nvml, State

TRIAL = (sys.executable, "-m", "attnbench.measure.doctor.trial")
LONGEST_S = 300.0  # torch from a cold disk, and a kernel compiled
PROBE = "--probe"
BUSY_BYTES, BUSY_S = 256 << 20, 0.3
AHEAD = 200  # reads of the buffer, some 20 ms of them on the fastest GPU


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen from within a process that computes on the device.

    `torch_cuda` is the CUDA version that torch is built for, empty for a CPU build.
    `kernel_failure` is why a Triton kernel did not run or was wrong, empty where it was right, and
    None where there is no GPU to run it on. `own_is_shown` says whether NVML lists a process while
    this one holds a context, `missing` the readings that NVML does not give to it, and `busy` is
    the state of the GPU while it reads its memory. `bandwidth` is None where it was not asked for
    or could not be measured; then `probe_failure` says why.
    """

    torch_cuda: str
    gpu_seen: bool
    kernel_failure: str | None = None
    own_is_shown: bool = False
    missing: tuple[str, ...] = ()
    busy: dict[str, float | int | str] = {}
    bandwidth: Bandwidth | None = None
    probe_failure: str = ""


def tried(kind: str, *, probe: bool, command: Sequence[str] = TRIAL) -> Trial:
    """Run a trial in a process of its own; raises `WorkerFailed` where it brings no result."""
    asked = [*command, kind, *([PROBE] if probe else [])]
    # NVML counts GPUs in PCI order; CUDA does so only when told.
    environment = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    try:
        done = subprocess.run(
            asked, env=environment, capture_output=True, text=True, timeout=LONGEST_S, check=False
        )
        return msgspec.json.decode(done.stdout.rstrip().rpartition("\n")[2], type=Trial)
    except subprocess.TimeoutExpired as error:
        raise WorkerFailed(f"torch and a kernel took more than {LONGEST_S:.0f} s") from error
    except msgspec.DecodeError as error:
        last = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
        raise WorkerFailed(f"torch or a kernel brought its process down: {last}") from error


def main(arguments: Sequence[str]) -> None:
    """Try things out, and print what came of it as the last line."""
    kind, *options = arguments
    said = msgspec.json.encode(trial(kind, probe=PROBE in options)).decode()
    print(f"\n{said}")


def trial(kind: str, *, probe: bool) -> Trial:
    """Everything that is tried, in this process."""
    import torch

    found = Trial(torch_cuda=torch.version.cuda or "", gpu_seen=torch.cuda.is_available())
    if kind == "cuda" and found.gpu_seen:
        found = msgspec.structs.replace(found, kernel_failure=kernel_failure(), **_seen_by_nvml())
    if probe and (kind == "cpu" or found.gpu_seen):
        found = msgspec.structs.replace(found, **_bandwidth(kind))
    return found


def kernel_failure() -> str:
    """Compile and run a small Triton kernel on the GPU; what went wrong, or nothing."""
    import torch

    from attnbench.kernels.read_bandwidth import ReadConfig, read

    config = ReadConfig(tile=1024, programs=4, num_warps=4)
    try:
        buffer = torch.ones(config.tile * config.programs, dtype=torch.float32, device="cuda")
        sums = torch.empty(config.programs, dtype=torch.float32, device="cuda")
        read(buffer, sums, config)
        total = float(sums.sum())
    except Exception as error:  # noqa: BLE001 - a compiler, a driver and a GPU may fail in any way
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    wanted = config.tile * config.programs
    return "" if total == wanted else f"it added {wanted} ones up to {total:g}"


def _seen_by_nvml() -> dict[str, object]:
    """What NVML shows while this process holds a context, and while it computes."""
    import torch

    from attnbench.errors import Unsupported
    from attnbench.measure.nvml import Nvml, unasked

    try:
        nvml = Nvml.by_uuid(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
    except Unsupported:
        return {}
    return {
        "own_is_shown": bool(nvml.ask("DeviceGetComputeRunningProcesses")),
        "missing": unasked(nvml),
        "busy": _busy_state(nvml),
    }


def _busy_state(nvml: Nvml) -> State:
    """Read with work still in the queue, once an idle GPU has had the time to raise its clock."""
    import torch

    from attnbench.measure.nvml import NvmlProbe

    buffer = torch.ones(BUSY_BYTES // 4, dtype=torch.float32, device="cuda")
    began = time.monotonic()
    while time.monotonic() - began < BUSY_S:
        for _ in range(AHEAD):
            buffer.sum()
        state = NvmlProbe(nvml).read()
        torch.cuda.synchronize()
    return state


def _bandwidth(kind: str) -> dict[str, object]:
    """As a session measures it, on a CPU with the one thread that it has as a rule."""
    import torch

    from attnbench.measure.bandwidth import read_bandwidth
    from attnbench.measure.clock import device_clock
    from attnbench.measure.device import device_facts

    torch.set_num_threads(1)
    try:
        clock = device_clock(torch.device(kind))
        return {"bandwidth": read_bandwidth(device_facts(kind), clock)}
    except (AttnbenchError, RuntimeError) as error:
        return {"probe_failure": str(error)}


if __name__ == "__main__":
    main(sys.argv[1:])
