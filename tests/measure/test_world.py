"""What an arm changes of the process is told of that arm, and is as it was for the next."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
import torch
from torch.nn.modules import module as nn_module
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import attnbench.measure.world as world_module
from attnbench.errors import AttnbenchError, SessionLost
from attnbench.measure.arms import BrokenArm
from attnbench.measure.settings import flags
from attnbench.measure.world import TASKS, World, children
from attnbench.protocol.verdict import Reason

CPU = torch.device("cpu")
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
CUDA, CUDNN = torch.backends.cuda, torch.backends.cudnn


def ignore(*_: object) -> None:
    return None


class Mode(TorchFunctionMode):
    """Raises on every call of torch."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        raise IndexError("block 7 is out of range")


class DispatchMode(TorchDispatchMode):
    """Slows every operator, and changes none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def one_processor() -> None:
    processors = os.sched_getaffinity(0)
    if len(processors) < 2:
        pytest.skip("there is one processor to run on, and no other choice of them")
    os.sched_setaffinity(0, {min(processors)})


def opposite(of: Any, name: str) -> None:
    setattr(of, name, not getattr(of, name))


def another_library() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch was built with one library for products of matrices")
    CUDA.preferred_blas_library("cublaslt")


CHANGES = {
    "torch function modes": lambda: Mode().__enter__(),
    "torch dispatch modes": lambda: DispatchMode().__enter__(),
    "autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "signal handlers": lambda: signal.signal(signal.SIGUSR2, ignore),
    "timers": lambda: signal.setitimer(signal.ITIMER_PROF, 1000, 1000),
    "SDPA order": lambda: torch._C._set_sdp_priority_order([0, 2, 1, 3]),
    "narrow sums of math SDPA": lambda: CUDA.allow_fp16_bf16_reduction_math_sdp(
        not CUDA.fp16_bf16_reduction_math_sdp_allowed()
    ),
    "float16 sums": lambda: opposite(CUDA.matmul, "allow_fp16_reduced_precision_reduction"),
    "bfloat16 sums": lambda: opposite(CUDA.matmul, "allow_bf16_reduced_precision_reduction"),
    "float16 accumulation": lambda: opposite(CUDA.matmul, "allow_fp16_accumulation"),
    "library of products": another_library,
    "collector callbacks": lambda: gc.callbacks.append(ignore),
    "trace function of new threads": lambda: threading.settrace(ignore),
    "profile function of new threads": lambda: threading.setprofile(ignore),
    "hooks _global_forward_hooks": lambda: nn_module.register_module_forward_hook(ignore),
    "hooks _global_forward_pre_hooks": lambda: nn_module.register_module_forward_pre_hook(ignore),
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "default device": lambda: torch.set_default_device("meta"),
    "grad mode": lambda: torch.set_grad_enabled(not torch.is_grad_enabled()),
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(True),
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(True),
    "float32 precision": lambda: torch.set_float32_matmul_precision("medium"),
    "flash SDPA": lambda: CUDA.enable_flash_sdp(not CUDA.flash_sdp_enabled()),
    "math SDPA": lambda: CUDA.enable_math_sdp(not CUDA.math_sdp_enabled()),
    "efficient SDPA": lambda: CUDA.enable_mem_efficient_sdp(not CUDA.mem_efficient_sdp_enabled()),
    "cuDNN SDPA": lambda: CUDA.enable_cudnn_sdp(not CUDA.cudnn_sdp_enabled()),
    "backends.cudnn.enabled": lambda: opposite(CUDNN, "enabled"),
    "backends.cudnn.benchmark": lambda: opposite(CUDNN, "benchmark"),
    "backends.cudnn.deterministic": lambda: opposite(CUDNN, "deterministic"),
    "flush denormals": lambda: torch.set_flush_denormal(True),
    "collector": gc.disable,
    "collector thresholds": lambda: gc.set_threshold(7, 7, 7),
    "switch interval": lambda: sys.setswitchinterval(0.25),
    "trace function": lambda: sys.settrace(ignore),
    "profile function": lambda: sys.setprofile(ignore),
    "processors": one_processor,
    "environment": lambda: os.environ.update(OF_AN_ARM="1"),
    "oneDNN": lambda: torch.backends.mkldnn.set_flags(not torch.backends.mkldnn.enabled),
    "deterministic oneDNN": lambda: torch._C._set_mkldnn_deterministic(
        not torch.backends.mkldnn.deterministic
    ),
}


def settings() -> dict[str, object]:
    return {flag.name: flag.read() for flag in flags(CPU)}


@pytest.fixture(autouse=True)
def _left_as_it_was():
    """What the process is like between two tests is none of a world's business."""
    before = settings()
    yield
    assert {**settings(), "environment": {}} == {**before, "environment": {}}


def lost_at_last(world: World) -> SessionLost:
    """What a thread at work costs: on a busy machine it may wait for its turn to be seen."""
    for _ in range(200):
        try:
            world.require_unchanged()
        except SessionLost as lost:
            return lost
    raise AssertionError("nobody was told of a thread that is at work")


def blamed(world: World, kind: type[AttnbenchError] = BrokenArm) -> AttnbenchError:
    with pytest.raises(kind) as caught:
        world.require_unchanged()
    return caught.value


def test_a_process_that_nobody_changed_is_nobodys_fault():
    world = World(CPU).settle()
    world.require_unchanged()


def test_every_setting_that_can_be_put_back_is_changed_by_a_test_of_this_file():
    assert set(CHANGES) == {flag.name for flag in flags(CPU) if flag.write is not None}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_setting_is_named_and_put_back_and_told_once(name):
    world = World(CPU).settle()
    before = settings()
    CHANGES[name]()
    caught = blamed(world)
    assert caught.reason == Reason.GLOBAL_STATE
    assert f"{name} " in caught.message
    assert settings() == before
    world.require_unchanged()


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_putting_the_default_device_back_leaves_no_mode_on_every_call(device):
    world = World(CPU).settle()
    torch.set_default_device(device)
    blamed(world)
    assert torch._C._len_torch_function_stack() == 0
    assert torch.zeros(1).device == CPU


def test_a_timer_that_rings_once_is_told_and_off_again():
    world = World(CPU).settle()
    signal.setitimer(signal.ITIMER_VIRTUAL, 1000)
    assert "timers " in blamed(world).message
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_a_quick_look_leaves_out_what_takes_long_to_read():
    world = World(CPU).settle()
    slow = [flag.name for flag in world._flags if flag.slow]
    world._before |= {name: {} for name in slow}
    world.require_unchanged(thoroughly=False)
    assert all(name in blamed(world, SessionLost).message for name in slow)


def test_names_of_the_environment_are_told_and_what_was_deleted_is_there_again(monkeypatch):
    world = World(CPU).settle()
    monkeypatch.setenv("WAS_HERE", "before")
    world.settle()
    del os.environ["WAS_HERE"]
    os.environ["IS_NEW"] = "1"
    assert "IS_NEW, WAS_HERE" in blamed(world).message
    assert os.environ["WAS_HERE"] == "before"
    assert "IS_NEW" not in os.environ


def test_what_cannot_be_put_back_ends_the_session_of_the_arm_that_changed_it():
    world = World(CPU).settle()
    with torch.inference_mode():
        caught = blamed(world, SessionLost)
        assert "inference mode from False to True" in caught.message
        assert caught.reason == Reason.GLOBAL_STATE
        world.require_unchanged()


@pytest.fixture
def impatient(monkeypatch):
    """Nobody waits for what goes on."""
    monkeypatch.setattr(world_module, "LINGER_S", 0.0)


@pytest.fixture
def spinning():
    """Start threads that are at work until the end of the test."""
    enough = threading.Event()
    threads: list[threading.Thread] = []

    def work() -> None:
        while not enough.is_set():
            pass

    def start() -> None:
        threads.append(threading.Thread(target=work, daemon=True))
        threads[-1].start()

    yield start
    enough.set()
    for thread in threads:
        thread.join()


@pytest.mark.skipif(not TASKS.exists(), reason="the system has no /proc to look threads up in")
def test_a_thread_left_at_work_ends_the_session_of_the_arm_that_left_it(spinning, impatient):
    world = World(CPU).settle()
    spinning()
    caught = lost_at_last(world)
    assert (caught.reason, caught.message) == (
        Reason.LEFT_RUNNING, "it left 1 thread(s) running",
    )  # fmt: skip
    world.require_unchanged()
    spinning()
    assert lost_at_last(world).reason == Reason.LEFT_RUNNING


@pytest.mark.skipif(not TASKS.exists(), reason="the system has no /proc to look threads up in")
def test_a_thread_that_works_a_little_longer_costs_its_arm_and_nobody_else(monkeypatch):
    looks_for, seen = world_module._at_work, threading.Event()

    def looking(places):
        working = looks_for(places)
        if working:
            seen.set()
        return working

    def work() -> None:
        while not seen.is_set():
            pass

    monkeypatch.setattr(world_module, "_at_work", looking)
    world = World(CPU).settle()
    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert blamed(world).reason == Reason.LEFT_RUNNING
    finally:
        seen.set()
        thread.join()


def test_threads_that_ended_or_wait_for_work_are_no_ones_fault():
    world = World(CPU).settle()
    ended = threading.Thread(target=ignore)
    ended.start()
    ended.join()
    enough = threading.Event()
    waiting = threading.Thread(target=enough.wait, daemon=True)
    waiting.start()
    world.require_unchanged()
    enough.set()
    waiting.join()


@pytest.mark.skipif(not TASKS.exists(), reason="the system has no /proc to look threads up in")
def test_a_thread_that_rested_since_the_last_look_is_not_watched_until_it_works(
    monkeypatch, impatient
):
    looks_for, watched = world_module._at_work, []

    def looking(places):
        watched.append(len(list(places)))
        return looks_for(places)

    monkeypatch.setattr(world_module, "_at_work", looking)
    begun, wakes, enough = (threading.Event() for _ in range(3))

    def work() -> None:
        begun.set()
        wakes.wait()
        while not enough.is_set():
            pass

    world = World(CPU).settle()
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    begun.wait()
    for _ in range(200):
        world.require_unchanged()
        if watched[-1] == 0:
            break
    assert watched[0] == 1
    assert watched[-1] == 0
    wakes.set()
    try:
        assert lost_at_last(world).reason == Reason.LEFT_RUNNING
    finally:
        enough.set()
        thread.join()


@pytest.mark.parametrize(
    ("code", "said"),
    [("while True: pass", "it left 1 child process(s) running"), ("input()", "")],
    ids=["at work", "waiting"],
)
def test_a_child_process_left_at_work_is_told_once_and_one_that_waits_is_not(code, said, impatient):
    world = World(CPU).settle()
    child = subprocess.Popen([sys.executable, "-c", f"print(flush=True)\n{code}"], **PIPES)
    try:
        child.stdout.readline()
        if child.pid not in children():
            pytest.skip("the system does not tell child processes")
        if said:
            assert lost_at_last(world).message == said
        world.require_unchanged()
    finally:
        child.kill()
        child.communicate()


def test_all_that_one_arm_changed_is_put_back_at_once_and_the_worst_is_told(spinning, impatient):
    world = World(CPU).settle()
    before = settings()
    own = time.sleep
    time.sleep = ignore
    torch.set_default_dtype(torch.float64)
    spinning()
    assert blamed(world, SessionLost).reason == Reason.PATCHED
    assert time.sleep is own
    assert settings() == before
    world.require_unchanged()


def test_settling_takes_settings_and_threads_for_how_things_should_be(spinning):
    world = World(CPU).settle()
    torch.set_default_dtype(torch.float64)
    spinning()
    world.settle()
    world.require_unchanged()
    torch.set_default_dtype(torch.float32)
    assert "from torch.float64 to torch.float32" in blamed(world).message
    assert torch.get_default_dtype() is torch.float64
    torch.set_default_dtype(torch.float32)
    world.settle()
