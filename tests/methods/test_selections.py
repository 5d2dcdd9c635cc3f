"""DCR's relatives: which tokens each attends to, from its definition."""

from __future__ import annotations

import pytest
import torch

from attnbench.errors import Unsupported, UsageError
from attnbench.methods import registry
from attnbench.methods.abkv import Abkv
from attnbench.methods.base import LayerShape, MethodLayer
from attnbench.methods.conformance import BOUNDS, relative_error
from attnbench.methods.mean_k_axis import MeanKAxis
from attnbench.methods.rank_window import RankWindow
from attnbench.methods.reference import exact_attention
from attnbench.methods.selection import even_budget
from attnbench.methods.topk_warm import TopKWarm
from attnbench.methods.trial import Case, Step, Trial, prefilled

CPU = torch.device("cpu")
BOUND = BOUNDS[torch.float32]
NAMES = ("mean_k_axis", "abkv", "rank_window", "topk_warm")


def trial_of(tokens: int = 60, appended: int = 1, group: int = 3) -> Trial:
    return Trial.make(Case(tokens, 64, group, batch=2), torch.float32, CPU, appended, seed=3)


def attended_by_hand(trial: Trial, rows_of, steps: int = 1) -> torch.Tensor:
    """Exact attention of the last of so many steps over the rows that `rows_of(keys [N,D], query
    [D], (sequence, KV head))` names."""
    k = torch.cat((trial.k, *(step.k for step in trial.steps[:steps])), dim=2)
    v = torch.cat((trial.v, *(step.v for step in trial.steps[:steps])), dim=2)
    q, group = trial.steps[steps - 1].q, trial.shape.group
    out = torch.zeros(q.shape, dtype=torch.float64)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            rows = rows_of(k[b, h // group].double(), q[b, h, 0].double(), (b, h // group))
            kept = (each[b, h // group, rows][None, None] for each in (k, v))
            out[b, h] = exact_attention(q[b, h][None, None], *kept, trial.shape.scale)[0, 0]
    return out


def largest(scores: torch.Tensor, count: int) -> list[int]:
    """Where the largest are; none are equal here."""
    return sorted(range(len(scores)), key=lambda row: -float(scores[row]))[:count]


def along_mean(keys: torch.Tensor, count: int) -> list[int]:
    axis = sum(key / key.norm() for key in keys)
    return largest(keys @ axis, count)


@pytest.mark.parametrize(
    ("tokens", "kept"), [(10, 10), (64, 64), (65, 64), (430, 64), (434, 66), (450, 68), (1000, 150)]
)
def test_the_budget_is_that_of_dcrs_code(tokens, kept):
    assert even_budget(0.15, 64, tokens) == kept


def test_a_coverage_is_the_decimal_number_that_was_written():
    assert TopKWarm(coverage=0.07, k_min=1).kept(100) == 7
    assert (
        Abkv("B", coverage=0.01, scan=0.29, k_min=1).chosen(torch.randn(1, 1, 100, 4)).numel() == 29
    )


def test_an_odd_least_is_rounded_up_and_never_beyond_the_tokens():
    assert even_budget(0.15, 63, 100) == 64
    assert even_budget(0.15, 63, 63) == 63


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", ["coverage=0", "coverage=1.1", "coverage=nan", "k_min=0"])
def test_what_is_no_budget_is_refused(name, budget):
    with pytest.raises(UsageError, match=name):
        registry.parse(f"{name},{budget}")


@pytest.mark.parametrize("wrong", ["abkv,mode=B,scan=0.1", "abkv,scan=0", "abkv,scan=2"])
def test_a_scan_that_leaves_nothing_to_choose_from_is_refused(wrong):
    with pytest.raises(UsageError, match="leaves nothing to choose"):
        registry.parse(wrong)


@pytest.mark.parametrize("wrong", ["topk_warm,refresh=0", "topk_warm,recent=-1"])
def test_a_warm_start_without_candidates_is_refused(wrong):
    with pytest.raises(UsageError, match="are no candidates"):
        registry.parse(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_heads_that_do_not_divide_are_refused(name):
    shape = LayerShape(1, 7, 2, 64, 40, torch.float32, CPU, 0, 0.125)
    with pytest.raises(Unsupported, match="7 heads do not divide by 2"):
        registry.parse(name).layer(shape)


@pytest.mark.parametrize("name", [*NAMES, "abkv,mode=B"])
def test_a_cache_within_the_least_budget_is_attended_to_as_a_whole_and_says_so(name):
    trial = trial_of(50)
    layer, _ = prefilled(registry.parse(name), trial)
    step = trial.steps[0]
    out = layer.decode(step.q, step.k, step.v)
    assert relative_error(out, attended_by_hand(trial, lambda keys, *_: range(len(keys)))) < BOUND
    assert layer.witness()["kept_share"] == layer.witness()["dense"] == 1.0
    trial = trial_of(90)
    layer, _ = prefilled(registry.parse(name), trial)
    layer.decode(step.q, step.k, step.v)
    assert layer.witness()["kept_share"] < 1
    assert layer.witness()["dense"] == 0.0


def decoded(layer: MethodLayer, trial: Trial, cache) -> torch.Tensor:
    """The output of the last step."""
    return list(trial.continued(layer, cache))[-1]


def test_the_mean_axis_keeps_the_farthest_of_each_sequence_and_all_that_comes_later():
    trial = trial_of(60, appended=3)
    layer, cache = prefilled(MeanKAxis(coverage=0.2, k_min=2), trial)
    out = decoded(layer, trial, cache)
    expected = attended_by_hand(
        trial, lambda keys, *_: [*along_mean(keys[:60], 12), 60, 61, 62], steps=3
    )
    assert relative_error(out, expected) < BOUND
    cache.length.set(62)
    assert layer.witness() == {"kept_share": 15 / 63, "attended_tokens": 15.0, "dense": 0.0}
    assert layer.bytes_read() == 15 * trial.shape.row_bytes


def test_abkvs_axis_is_one_for_all_sequences():
    trial = trial_of(60)
    shared = [
        sum(key / key.norm() for keys in trial.k[:, head].double() for key in keys)
        for head in range(2)
    ]

    def rows(keys: torch.Tensor, _, at: tuple[int, int]) -> list[int]:
        return [*largest(keys[:60] @ shared[at[1]], 12), 60]

    out = trial.first_output(Abkv(coverage=0.2, k_min=2).layer(trial.shape))
    assert relative_error(out, attended_by_hand(trial, rows)) < BOUND


def test_abkv_evicts_what_no_step_reads():
    trial = trial_of(4000)
    step = trial.steps[0]
    for method, kept in ((Abkv(), 600), (Abkv(mode="B"), 2000)):
        layer, cache = prefilled(method, trial)
        expected = layer.decode(step.q, step.k, step.v)
        room = trial.shape.capacity - 4000
        assert sum(t.nbytes for t in layer.tensors()) == (kept + room) * trial.shape.row_bytes
        layer.reset()
        cache.k.fill_(float("nan"))
        cache.v.fill_(float("nan"))
        assert torch.equal(layer.decode(step.q, step.k, step.v), expected)


def test_abkv_b_takes_each_heads_best_of_the_scanned_and_all_that_comes_later():
    trial = trial_of(60, appended=2)
    layer, cache = prefilled(Abkv("B", coverage=0.2, scan=0.5, k_min=2), trial)
    out = decoded(layer, trial, cache)
    by_axis = Abkv("B", coverage=1.0, scan=1.0).chosen(trial.k)

    def rows(keys: torch.Tensor, query: torch.Tensor, at: tuple[int, int]) -> list[int]:
        scanned = by_axis[*at, :30].tolist()
        best = largest(keys[scanned] @ query, 12)
        return [*(scanned[at] for at in best), 60, 61]

    assert relative_error(out, attended_by_hand(trial, rows, steps=2)) < BOUND
    cache.length.set(61)
    assert layer.witness()["kept_share"] == 14 / 62
    assert layer.bytes_read() == (32 + 14) * trial.shape.row_bytes // 2


def test_scanning_everything_is_the_exact_top_k():
    trial = trial_of(60)
    out = trial.first_output(Abkv("B", coverage=0.2, scan=1.0, k_min=2).layer(trial.shape))
    expected = attended_by_hand(trial, lambda keys, q, _: [*largest(keys[:60] @ q, 12), 60])
    assert relative_error(out, expected) < BOUND


def rank_rows(keys: torch.Tensor, query: torch.Tensor, half: int) -> list[int]:
    """Ranks within `half` of the query's own, from the inequality that defines the window."""
    along = keys @ (query / query.norm())
    ranked = sorted(range(len(keys)), key=lambda row: float(along[row]))
    own = min(sum(float(each) < float(query.norm()) for each in along), len(keys) - 1)
    return [row for rank, row in enumerate(ranked) if abs(rank - own) <= half]


@pytest.mark.parametrize("sharpness", [0.05, 0.2, 3.0])
def test_a_rank_window_is_centred_on_the_querys_own_projection(sharpness):
    trial = Trial.make(Case(80, 64, 3, batch=2), torch.float32, CPU, 1, 3, sharpness)
    layer, _ = prefilled(RankWindow(coverage=0.2, k_min=2), trial)
    step = trial.steps[0]
    out = layer.decode(step.q, step.k, step.v)
    held = []

    def rows(keys: torch.Tensor, query: torch.Tensor, _) -> list[int]:
        held.append(rank_rows(keys, query, half=8))
        return held[-1]

    assert relative_error(out, attended_by_hand(trial, rows)) < BOUND
    attended = sum(map(len, held)) / len(held)
    assert layer.witness()["attended_tokens"] == attended
    assert layer.witness()["kept_share"] == pytest.approx(attended / 81)
    assert (attended == 17) == (sharpness == 0.05)
    assert (attended == 9) == (sharpness == 3.0)  # a query beyond all keys finds half a window


def test_a_window_that_is_moved_inside_is_the_top_k_for_a_query_beyond_all_keys():
    trial = Trial.make(Case(80, 64, 3, batch=2), torch.float32, CPU, 1, 3, sharpness=3.0)
    method = RankWindow(coverage=0.2, k_min=2, edge="shift")
    expected = attended_by_hand(trial, lambda keys, query, _: largest(keys @ query, 17))
    assert relative_error(trial.first_output(method.layer(trial.shape)), expected) < BOUND


def test_a_warm_start_that_looks_at_every_token_is_the_exact_top_k():
    trial = trial_of(60, appended=2)
    layer, cache = prefilled(TopKWarm(coverage=0.2, k_min=2, recent=0, refresh=1), trial)
    out = decoded(layer, trial, cache)
    expected = attended_by_hand(trial, lambda keys, q, _: largest(keys @ q, 13), steps=2)
    assert relative_error(out, expected) < BOUND
    cache.length.set(61)
    assert layer.witness()["candidate_share"] == 1.0


def test_a_token_that_came_to_matter_is_found_at_its_turn_and_kept():
    """One key points where all later queries do, and none of the prompt did."""
    trial = trial_of(60, appended=12)
    wanted, refresh = 17, 6
    direction = torch.nn.functional.normalize(torch.arange(64.0) - 20, dim=0)
    trial.k[:] -= (trial.k @ direction)[..., None] * direction
    trial.k[:, :, wanted] = 40 * direction
    steps = tuple(Step(direction.expand_as(s.q) * 4, s.k * 0.01, s.v) for s in trial.steps)
    trial = Trial(**{**vars(trial), "steps": steps})
    layer, cache = prefilled(TopKWarm(coverage=0.1, k_min=2, recent=2, refresh=refresh), trial)
    value = trial.v[:, :, wanted].repeat_interleave(3, dim=1)[:, :, None]
    found = [relative_error(out, value) < 1e-3 for out in trial.continued(layer, cache)]
    turn = next(step for step in range(12) if (60 + step) % refresh == wanted % refresh)
    assert found == [step >= turn for step in range(12)]
    assert turn > 0


def test_a_warm_step_may_be_repeated_and_a_reset_forgets_what_was_chosen_since():
    trial = trial_of(60, appended=4)
    method = TopKWarm(coverage=0.1, k_min=2, recent=2, refresh=7)
    layer, cache = prefilled(method, trial)
    first = list(trial.continued(layer, cache))
    layer.reset()
    cache.length.set(60)
    for step, expected in zip(trial.steps, first, strict=True):
        for other in trial.steps:
            layer.decode(other.q, other.k, other.v)
        assert torch.equal(layer.decode(step.q, step.k, step.v), expected)
        cache.length.advance()


def test_a_warm_step_reads_no_more_than_its_candidates():
    trial = trial_of(2000)
    layer, _ = prefilled(TopKWarm(), trial)
    heads, row = 2 * 6, trial.shape.row_bytes // 2
    assert layer.bytes_read() == (301 + 301) * row + heads * 300 * 4
    candidates = 300 + 64 + 126
    assert layer.witness()["candidate_share"] == pytest.approx(candidates / 2001)
    assert layer.witness()["kept_share"] == 301 / 2001
