"""Without a CUDA GPU Triton's kernels are interpreted; that is decided before one is imported.

A shell starts what runs in its background deaf to Ctrl-C, and its children inherit that: tests that
interrupt a command would wait for nothing.
"""

import gc
import os
import signal

import pytest
import torch

from attnbench.measure.imports import uncollected

os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # as in a worker
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Tests neither find what a user's cache holds nor leave anything there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """The collector looks at nothing of what is imported, then or later, as in a worker."""
    with uncollected():
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def imports_unseen_by_the_collector():
    """A bench that ends hands back to the collector what was there before it: here that stays out
    of its sight, since other benches follow, each of which would have all of it walked again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "unfreeze", lambda: None)
        yield
