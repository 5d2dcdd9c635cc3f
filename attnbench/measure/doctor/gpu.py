"""What of a GPU's settings would spoil a measurement; NVML is asked, nothing is set."""

from __future__ import annotations

from importlib.util import find_spec

from attnbench.errors import Unsupported
from attnbench.measure.device import DeviceFacts
from attnbench.measure.doctor.finding import Finding, bad, ok, unknown, warn
from attnbench.measure.doctor.system import System, read
from attnbench.measure.nvml import Nvml, ecc_errors, mig_off, refuse_mig

GIB = 1 << 30
NVIDIA, DISPLAY_CLASS = "0x10de", "0x03"  # of PCI; class 3 holds 3D controllers too
TESTED_CAPABILITY = (8, 0)  # kernels are compiled and tested for 8.0, 8.9 and 9.0
VGPU = 2  # NVML_GPU_VIRTUALIZATION_MODE_VGPU
PROHIBITED, EXCLUSIVE = 2, 3  # NVML_COMPUTEMODE_*
UNSEEN = "a flipped bit in weights or cache would go unseen, and a run that it spoilt would count"


def unanswered(refusal: Unsupported) -> Finding:
    """NVML cannot be asked, so that neither `decode` nor this command can say anything of a GPU."""
    command = "nvidia-smi -L" if find_spec("pynvml") else "pip install nvidia-ml-py"
    return bad("driver", refusal.message, refusal.hint, command)


def absent(system: System, *, wanted: bool) -> Finding:
    """Whether there is a card after all; `wanted`: the user chose the CPU, or hid the GPU."""
    cards = [
        device.name
        for device in sorted((system.sys / "bus/pci/devices").glob("*"))
        if read(device / "vendor") == NVIDIA and read(device / "class").startswith(DISPLAY_CLASS)
    ]
    there = f"an NVIDIA card at {', '.join(cards)}" if cards else "none"
    if wanted or not cards:
        return ok("GPU", f"{there}; the CPU is measured, whose times count against each other only")
    why = "no driver speaks for it, and the CPU would be measured instead"
    return warn("GPU", there, why, "nvidia-smi")


def driver(facts: DeviceFacts) -> Finding:
    """Which driver answers."""
    return ok("driver", f"{facts.driver}, for CUDA up to {facts.cuda}")


def identity(facts: DeviceFacts) -> Finding:
    """Which GPU it is, and whether the kernels were tested on its kind."""
    gib = facts.memory_total_bytes / GIB
    seen = f"{facts.name}, {gib:.1f} GiB, compute capability {facts.compute_capability or '?'}"
    if not facts.compute_capability:
        return unknown("GPU", f"{seen}, {facts.uuid}", "its kernels cannot be chosen by capability")
    if tuple(map(int, facts.compute_capability.split("."))) < TESTED_CAPABILITY:
        why = "bfloat16 and the kernels' shared memory are tested from compute capability 8.0 on"
        return warn("GPU", f"{seen}, {facts.uuid}", why, "attnbench parity")
    return ok("GPU", f"{seen}, {facts.uuid}")


def whole(nvml: Nvml) -> Finding:
    """Whether the GPU is split between several users."""
    try:
        refuse_mig(nvml)
    except Unsupported as refusal:
        uuid = nvml.text("DeviceGetUUID")
        return bad("MIG", "on", refusal.message.removeprefix("MIG is on: "), mig_off(uuid))
    _, pending = nvml.ask("DeviceGetMigMode") or (0, 0)
    if pending:
        why = "the GPU will be split when it is next reset"
        return warn("MIG", "off now, on after a reset", why, mig_off(nvml.text("DeviceGetUUID")))
    if nvml.ask("DeviceGetVirtualizationMode") == VGPU:
        why = "the host may give the GPU to other machines in turns, unseen from here"
        return warn("vGPU", "a virtual GPU", f"{why}; ask for a whole one")
    return ok("MIG", "off: the GPU is not split")


def compute_mode(nvml: Nvml) -> Finding:
    """Whether a process may compute on it."""
    mode = nvml.ask("DeviceGetComputeMode")
    if mode is None:
        return unknown("compute mode", "cannot be asked")
    if mode == PROHIBITED:
        why = "no process may compute on this GPU"
        return bad("compute mode", "prohibited", why, f"sudo nvidia-smi {_at(nvml)} -c DEFAULT")
    if mode == EXCLUSIVE:
        return ok("compute mode", "exclusive: it keeps other processes away")
    return ok("compute mode", "default: any number of processes may compute")


def persistence(nvml: Nvml) -> Finding:
    """Whether the driver stays loaded between sessions."""
    enabled = nvml.ask("DeviceGetPersistenceMode")
    if enabled is None:
        return unknown("persistence mode", "cannot be asked")
    if enabled:
        return ok("persistence mode", "on")
    return warn(
        "persistence mode",
        "off",
        "every session is a fresh process: between two the driver lets the GPU go, and clock locks "
        "with it",
        f"sudo nvidia-smi {_at(nvml)} -pm 1",
    )


def display(nvml: Nvml) -> Finding:
    """Whether a desktop is drawn on it."""
    active = nvml.ask("DeviceGetDisplayActive")
    if active is None:
        return unknown("display", "cannot be asked")
    if not active:
        return ok("display", "none active")
    return warn(
        "display",
        "active",
        "what is drawn takes the GPU between and inside steps",
        "sudo systemctl isolate multi-user.target",
    )


def ecc(nvml: Nvml) -> Finding:
    """Whether memory errors would be seen, and whether there were any."""
    current, _ = nvml.ask("DeviceGetEccMode") or (None, None)
    if current is None:
        return unknown("ECC", "cannot be asked, or this GPU has none", UNSEEN)
    if not current:
        return warn("ECC", "off", UNSEEN, f"sudo nvidia-smi {_at(nvml)} -e 1")
    corrected = ecc_errors(nvml, nvml.api.NVML_MEMORY_ERROR_TYPE_CORRECTED)
    uncorrected = ecc_errors(nvml, nvml.api.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)
    seen = f"on; {_count(corrected)} corrected, {_count(uncorrected)} uncorrected errors"
    *_, pending, failed = nvml.ask("DeviceGetRemappedRows") or (0, 0, 0, 0)
    if failed:
        why = "a row of memory is broken and could not be replaced by a spare one"
        return bad("ECC", f"{seen}; remapping failed", why, f"nvidia-smi {_at(nvml)} -q -d ECC")
    if uncorrected or pending:
        why = "one more while a session runs voids it; a reset replaces what is broken by spares"
        return warn("ECC", seen, why, f"sudo nvidia-smi {_at(nvml)} --gpu-reset")
    return ok("ECC", seen)


def _count(errors: int | None) -> str:
    return "an unknown number of" if errors is None else str(errors)


def _at(nvml: Nvml) -> str:
    """The option of nvidia-smi that names this GPU."""
    return f"-i {nvml.text('DeviceGetUUID')}"
