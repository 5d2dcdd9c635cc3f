"""What of the installed packages and of the environment would spoil a measurement."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping

from attnbench.measure.doctor.finding import Finding, bad, ok, warn

# The oldest that work, as pyproject.toml requires them.
LEAST = {"torch": "2.11", "triton": "3.6", "transformers": "5.17", "numpy": "2.0"}
WHY_LEAST = {"transformers": "before 5.17 it builds wrong tokenizers from GGUF files"}
# Variables that change what is timed: what a value that is set does.
SPOILERS = {
    "CUDA_LAUNCH_BLOCKING": "every launch waits for the GPU, which no other user's does",
    "TRITON_INTERPRET": "Triton's kernels run in Python, thousands of times slower",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "every allocation goes to the driver and synchronises",
    "NVIDIA_TF32_OVERRIDE": "float32 products get another precision than the record says",
    "CUDA_INJECTION64_PATH": "a profiler is loaded into every session",
}
OFF = ("", "0")


def packages(versions: Mapping[str, str]) -> Iterator[Finding]:
    """One finding for all that fits, and one for each package that is missing or too old."""
    said = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    yield ok("packages", f"Python {platform.python_version()}, {said}")
    for name, least in LEAST.items():
        version = versions[name]
        if not version or older(version, least):
            yield bad(
                name,
                f"{version or 'missing'}; {least} or later is needed",
                WHY_LEAST.get(name, "older ones were not tried and lack what attnbench calls"),
                f"pip install --upgrade '{name}>={least}'",
            )


def interpreter(versions: Mapping[str, str], kind: str) -> Finding:
    """Whether Triton's interpreter, which stands in for a GPU, works with this numpy."""
    triton, numpy = versions["triton"], versions["numpy"]
    seen = f"triton {triton or 'missing'} with numpy {numpy or 'missing'}"
    if not triton or not numpy or not (is_series(triton, "3.6") and not older(numpy, "2.4")):
        return ok("Triton's interpreter", seen)
    if kind == "cuda":
        return ok("Triton's interpreter", f"{seen} fails; on a GPU nothing is interpreted")
    return warn(
        "Triton's interpreter",
        seen,
        "Triton 3.6 cannot run a loop over a device value with numpy 2.4 or later, so that "
        "`attnbench parity` fails without a GPU",
        "pip install 'numpy<2.4'",
    )


def switches(environ: Mapping[str, str], kind: str) -> Finding:
    """Whether a variable of the environment changes what is timed."""
    found = [name for name in SPOILERS if environ.get(name, "") not in OFF]
    if not found:
        return ok("environment", "no variable that changes what is timed")
    if kind == "cpu":
        return ok("environment", f"{', '.join(found)} set; it does not matter to a CPU")
    return bad(
        "environment",
        ", ".join(f"{name}={environ[name]}" for name in found),
        "; ".join(SPOILERS[name] for name in found),
        f"unset {' '.join(found)}",
    )


def older(version: str, least: str) -> bool:
    """Whether a version comes before another; what follows its numbers does not count."""
    return numbers(version) < numbers(least)


def is_series(version: str, series: str) -> bool:
    """Whether 3.6.1 is of the series 3.6."""
    wanted = numbers(series)
    return numbers(version)[: len(wanted)] == wanted


def numbers(version: str) -> tuple[int, ...]:
    """2.13.0+cpu -> (2, 13, 0)"""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
