"""Every test of this folder ends in the process in which it began."""

from __future__ import annotations

import pytest
import torch

from tests.evil import undo
from tests.evil.process import state


@pytest.fixture(autouse=True)
def restored(request):
    """One thread, as on a busy machine; what cheats changed is taken back, and compared."""
    if request.node.get_closest_marker("gpu") and torch.cuda.is_available():
        torch.cuda.init()
    several = torch.get_num_threads()
    torch.set_num_threads(1)
    before = state()
    yield
    undo.everything()
    assert state() == before
    torch.set_num_threads(several)
