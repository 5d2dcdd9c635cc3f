"""Large libraries imported as fast as they can be."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector, which finds nothing in what is imported and walks all of it
    again and again. It does not look at that later either, until `gc.unfreeze`."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # modules that are not taken apart are reported as leaks
        if was_on:
            gc.enable()


def import_models() -> None:
    """Import what every model is described and made with, which takes a second or two."""
    from transformers import (  # noqa: F401
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationMixin,
        PreTrainedModel,
    )
    from transformers.modeling_layers import GradientCheckpointingLayer  # noqa: F401
