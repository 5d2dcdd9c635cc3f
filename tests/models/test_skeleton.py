"""A model without weights tells of its layers what the model itself tells."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig

from attnbench.models import skeleton
from attnbench.models.adapter import attention_router
from attnbench.models.skeleton import surveyed_skeleton
from attnbench.models.survey import survey
from tests.models.tiny import WORKING, loaded


class Only:
    """A source that has a configuration and nothing else."""

    def __init__(self, architecture: str) -> None:
        self._of = WORKING[architecture]

    def config(self):
        model_type, settings = self._of
        return AutoConfig.for_model(model_type, **settings)


@pytest.mark.parametrize("architecture", sorted(WORKING))
def test_every_layer_has_the_shape_scale_and_window_that_the_loaded_model_shows(
    architecture, monkeypatch
):
    model = loaded(architecture)
    with attention_router(model.module) as router:
        real = survey(model, router, 2, 100, torch.float32, torch.device("cpu"))
    monkeypatch.setattr(skeleton, "source_of", lambda spec: Only(architecture))
    bare = surveyed_skeleton(model.info, 2, 100, torch.float32)
    for one, other in zip(real, bare, strict=True):
        assert one.window == other.window
        for name in ("batch", "heads", "kv_heads", "head_dim", "layer", "scale", "capacity"):
            assert getattr(one.shape, name) == getattr(other.shape, name)
