"""A model without weights: enough to ask what each of its layers passes to attention."""

from __future__ import annotations

import torch

from attnbench.models.adapter import SurveyedLayer, attention_router
from attnbench.models.architecture import build
from attnbench.models.info import LoadedModel, ModelInfo
from attnbench.models.sources import source_of
from attnbench.models.survey import survey


def surveyed_skeleton(
    info: ModelInfo, batch: int, capacity: int, dtype: torch.dtype
) -> tuple[SurveyedLayer, ...]:
    """The survey of the model, on device meta: neither its weights nor a device are touched.

    Raises `ModelError` for models that methods cannot be put into.
    """
    meta = torch.device("meta")
    config = source_of(info.spec).config()
    with meta:
        module = build(config, dtype=dtype, attn_implementation="sdpa").eval()
    with attention_router(module) as router:
        return survey(LoadedModel(module, info, None), router, batch, capacity, dtype, meta)
