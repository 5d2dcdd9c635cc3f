"""What a user reads when a model cannot be had."""

import pytest
import torch

from attnbench.errors import ModelError
from attnbench.models.sources import load


def refusal(spec):
    """The text of the error that loading `spec` ends in."""
    with pytest.raises(ModelError) as error:
        load(spec, torch.float32, torch.device("cpu"), seed=0)
    return f"{error.value.message} | {error.value.hint}"
