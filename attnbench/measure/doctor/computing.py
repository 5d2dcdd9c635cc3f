"""What came of trying torch, a kernel and the memory, as findings."""

from __future__ import annotations

from collections.abc import Iterator

from attnbench.errors import WorkerFailed
from attnbench.measure.answers import Bandwidth
from attnbench.measure.device import DeviceFacts
from attnbench.measure.doctor.finding import Finding, bad, ok, unknown, warn
from attnbench.measure.doctor.software import older
from attnbench.measure.doctor.trial import Trial

INTERPRETED = "there is no GPU to run them on; Triton's interpreter checks their logic"


def collapsed(failure: WorkerFailed) -> Finding:
    """The process that tried torch and a kernel brought no result."""
    return bad(
        "torch",
        failure.message,
        "a session would end there too; its own words tell more",
        "python -c 'import torch; print(torch.__version__, torch.cuda.is_available())'",
    )


def torch_on_cpu(trial: Trial, *, wanted: bool) -> Finding:
    """Whether torch misses a GPU; `wanted`: the user chose the CPU, or hid the GPU."""
    if not trial.torch_cuda:
        return ok("torch", "built for CPUs")
    seen = f"built for CUDA {trial.torch_cuda}"
    if wanted or trial.gpu_seen:
        return ok("torch", f"{seen}; the CPU was chosen")
    return warn(
        "torch",
        f"{seen}, and sees no GPU",
        "where there is a GPU its driver is missing or does not answer; where there is none, a CPU "
        "build does as well and takes gigabytes less",
        "nvidia-smi",
    )


def torch_on_cuda(trial: Trial, facts: DeviceFacts) -> Finding:
    """Whether this build of torch can use this driver's GPU."""
    seen = f"built for CUDA {trial.torch_cuda}, the driver is for CUDA up to {facts.cuda}"
    if trial.gpu_seen:
        return ok("torch", seen)
    if not trial.torch_cuda:
        why = "a build without CUDA cannot use the GPU"
        return bad("torch", "built for CPUs", why, "pip install --force-reinstall torch")
    if older(facts.cuda, trial.torch_cuda.partition(".")[0]):
        why = "a driver runs no CUDA of a later major version; install a newer driver, or a build "
        return bad("torch", seen, f"{why}of torch for CUDA {facts.cuda} (pytorch.org says which)")
    why = "torch and the driver do not find each other"
    return bad("torch", f"{seen}; it sees no GPU", why, "python -m torch.utils.collect_env")


def kernels(trial: Trial) -> Finding:
    """Whether a Triton kernel compiles, runs and is right."""
    if trial.kernel_failure is None:
        return unknown("kernels", "not run", INTERPRETED, "attnbench parity")
    if trial.kernel_failure:
        why = "the project's own kernels would fail as well, and leave weaker baselines"
        return bad("kernels", trial.kernel_failure, why, "attnbench parity flash_decode")
    return ok("kernels", "a Triton kernel was compiled, ran and was right")


def probed(trial: Trial) -> Iterator[Finding]:
    """The read bandwidth, where it was asked for."""
    if trial.bandwidth is not None:
        yield read_bandwidth(trial.bandwidth)
    elif trial.probe_failure:
        why = "a session measures it first, and would end there"
        yield bad("read bandwidth", trial.probe_failure, why)


def read_bandwidth(found: Bandwidth) -> Finding:
    """Against memory clock times bus width, where both are known."""
    if found.note:
        why = "a doubtful probe voids every latency: what slows memory is in the figures too"
        return bad("read bandwidth", found.note, why)
    theory = found.theoretical_gb_s
    share = f", {found.gb_s / theory:.0%} of {theory:,.0f} in theory" if theory else ""
    return ok("read bandwidth", f"{found.gb_s:,.0f} GB/s{share} ({found.how})")
