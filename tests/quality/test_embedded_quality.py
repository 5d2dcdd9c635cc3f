import pytest
import torch

from attnbench.models.sources import EMBEDDED_FOLDER, load
from attnbench.quality.candidates import candidate
from attnbench.quality.gates import Quality, judge
from attnbench.quality.levels import QualityCounts
from attnbench.quality.run import run_quality

CPU = torch.device("cpu")
ARMS = {"sdpa": "exact", "int8_kv": "approximate", "zero_cost": "control"}

pytestmark = pytest.mark.skipif(
    not (EMBEDDED_FOLDER / "model.safetensors").exists(),
    reason="the weights of the embedded model are not here yet",
)


@pytest.fixture(scope="module")
def verdicts():
    samples = run_quality(
        load("embedded", torch.float32, CPU, seed=0),
        [candidate(name, name, CPU) for name in ARMS],
        QualityCounts(context=512, windows=1, steps=8),
        dtype=torch.float32,
        device=CPU,
        seed=0,
        progress=lambda *_: None,
    )
    assert not samples.failures
    return {label: judge(arm, ARMS[label], "trained") for label, arm in samples.arms.items()}


def test_sdpa_equals_itself_on_the_embedded_model(verdicts):
    assert verdicts["sdpa"].figures["cosine_min"] == pytest.approx(1, abs=1e-6)
    assert verdicts["sdpa"].reason == "gates-not-run"


def test_eight_bits_hardly_change_the_outputs(verdicts):
    assert verdicts["int8_kv"].figures["cosine_mean"] > 0.999
    assert verdicts["int8_kv"].verdict is not Quality.KILL


def test_no_attention_at_all_is_killed(verdicts):
    assert verdicts["zero_cost"].verdict is Quality.KILL
    assert verdicts["zero_cost"].figures["kl_mean_nats"] > 0.2
