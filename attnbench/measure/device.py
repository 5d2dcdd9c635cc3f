"""What this machine is, asked without CUDA: the parent process must never hold a CUDA context.

The GPU is asked through NVML, the CPU through /proc and /sys. What cannot be asked is 0 or empty,
as the field's line says, and never guessed.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import msgspec

from attnbench import __version__
from attnbench.errors import Unsupported
from attnbench.measure.nvml import Nvml, refuse_mig

PACKAGES = ("torch", "triton", "transformers", "numpy")
CGROUP = Path("/sys/fs/cgroup")


class DeviceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The device that is measured; zeros and empty strings mean that it cannot be asked."""

    kind: str  # "cuda" or "cpu"
    name: str
    uuid: str
    memory_total_bytes: int
    memory_free_bytes: int
    memory_clock_mhz: int
    bus_bits: int
    driver: str
    cuda: str  # the newest CUDA version that the driver supports
    compute_capability: str  # "9.0"
    cores: int  # of a CPU, those this process may use

    @property
    def theoretical_bandwidth_gb_s(self) -> float:
        """Memory clock times bus width, two transfers a cycle; 0 where either is unknown."""
        return 2 * self.memory_clock_mhz * 1e6 * self.bus_bits / 8 / 1e9


def device_facts(kind: str) -> DeviceFacts:
    """The facts of "cuda" (the first visible GPU) or "cpu".

    Raises `Unsupported` where a GPU is asked for and there is none, its driver does not answer,
    MIG splits it, or this PyTorch cannot use it.
    """
    if kind != "cuda":
        return cpu_facts()
    nvml = visible_gpu()
    refuse_mig(nvml)
    if not torch_cuda():
        raise Unsupported(
            f"PyTorch {_version('torch')} was built without CUDA and cannot use the GPU here",
            hint="install a build with CUDA (pytorch.org/get-started names the command), or "
            "measure with --device cpu",
        )
    return cuda_facts(nvml)


def torch_cuda() -> str:
    """The CUDA version that PyTorch was built with; empty where with none. No GPU is touched."""
    import torch

    return torch.version.cuda or ""


def has_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether there is an NVIDIA GPU that this process may see.

    Raises `Unsupported` where there is one that NVML refuses to speak of, or that MIG splits: going
    on with the CPU would be a silent fallback.
    """
    if hidden_on_purpose():
        return False
    try:
        nvml = visible_gpu()
    except Unsupported as error:
        if any(devices.glob("nvidia[0-9]*")):
            raise Unsupported(
                f"there is an NVIDIA GPU, but it cannot be measured: {error.message}",
                hint=f"{error.hint}; or choose --device cpu",
            ) from error
        return False
    refuse_mig(nvml)
    return True


def hidden_on_purpose() -> bool:
    """Whether the user hid every GPU."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")


def visible_gpu() -> Nvml:
    """The GPU that CUDA will call device 0, in PCI order; raises `Unsupported` without one."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if first.startswith("GPU-"):
        return Nvml.by_uuid(first)
    if first.isdecimal():
        return Nvml.by_index(int(first))
    raise Unsupported(
        f"CUDA_VISIBLE_DEVICES={first!r} names no GPU that can be measured",
        hint="name one by its number or its GPU- UUID; MIG slices are not supported",
    )


def cuda_facts(nvml: Nvml) -> DeviceFacts:
    """What NVML says of this GPU."""
    api, ask = nvml.api, nvml.ask
    memory = ask("DeviceGetMemoryInfo")
    capability = ask("DeviceGetCudaComputeCapability")
    return DeviceFacts(
        kind="cuda",
        name=nvml.text("DeviceGetName"),
        uuid=nvml.text("DeviceGetUUID"),
        memory_total_bytes=memory.total if memory else 0,
        memory_free_bytes=memory.free if memory else 0,
        memory_clock_mhz=ask("DeviceGetMaxClockInfo", api.NVML_CLOCK_MEM) or 0,
        bus_bits=ask("DeviceGetMemoryBusWidth") or 0,
        driver=_driver(api.nvmlSystemGetDriverVersion),
        cuda=_cuda_version(api.nvmlSystemGetCudaDriverVersion()),
        compute_capability="{}.{}".format(*capability) if capability else "",
        cores=0,
    )


def _driver(ask: Callable[[], str | bytes]) -> str:
    version = ask()
    return version.decode() if isinstance(version, bytes) else version


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def cpu_facts() -> DeviceFacts:
    """This machine's processor and memory, as far as this process may use them."""
    total, free = _memory_bytes()
    return DeviceFacts(
        kind="cpu",
        name=cpu_name(),
        uuid="",
        memory_total_bytes=total,
        memory_free_bytes=free,
        memory_clock_mhz=0,
        bus_bits=0,
        driver="",
        cuda="",
        compute_capability="",
        cores=len(os.sched_getaffinity(0)),
    )


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The model name of the first processor, or the architecture where it has none."""
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def last_level_cache_bytes(caches: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """The largest cache of the first processor, 0 where the system does not say."""
    sizes = (path.read_text().strip() for path in caches.glob("index*/size"))
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes), default=0)


def _memory_bytes() -> tuple[int, int]:
    """Total and available memory; a container's limit counts when it is the lower one."""
    total, free = (_meminfo_bytes(field) for field in ("MemTotal", "MemAvailable"))
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        total, free = min(total, int(text)), min(free, int(text) - int(used.read_text()))
    return total, free


def _meminfo_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def environment(facts: DeviceFacts) -> dict[str, str | int | float]:
    """What a record must say of where it was measured; versions without importing anything."""
    return {
        "python": platform.python_version(),
        "attnbench": __version__,
        **package_versions(),
        "platform": platform.platform(),
        "device": facts.name,
        "device_uuid": facts.uuid,
        "driver": facts.driver,
        "cuda": facts.cuda,
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages that a measurement rests on, empty for one that is missing."""
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
