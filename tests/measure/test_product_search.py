"""Which products to compute by own kernels: searched in steps whose times are made up, then in a
compiled model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from attnbench.errors import Unsupported
from attnbench.kernels.product_launch import ProductLaunch, ProductShape
from attnbench.measure import product_tuning
from attnbench.measure.arms import BrokenArm
from attnbench.measure.clock import Timing
from attnbench.measure.product_search import Search
from attnbench.measure.product_tuning import CompiledStand
from attnbench.models import few_rows
from attnbench.models.compiled import ready_to_compile
from attnbench.models.tables import token_table
from tests.models.bench import TOKENS, bench
from tests.models.tiny import prompt

OUT, GATE = ProductShape(4, 32, 64), ProductShape(4, 128, 64)
FUSED = ProductShape(4, 128, 64, "norm+gate")
LIBRARY_US = 100.0


def launch(tiles: int) -> ProductLaunch:
    return ProductLaunch("ring", block_n=16, num_warps=4, on_an_sm=1, tiles=tiles)


class MadeUp:
    """A step in which each product saves so many microseconds, by its form and tiles."""

    def __init__(self, saves: dict[tuple[ProductShape, int], float]) -> None:
        self.saves = saves
        self.compiled: list[tuple[ProductShape, ...]] = []

    def forms(self):
        return [(OUT,), (FUSED, GATE), (OUT,)]

    def offered(self, shape):
        return [launch(tiles) for tiles in (2, 3, 4)]

    def compile(self, launches):
        self.compiled.append(tuple(launches))
        if any((shape, 0) in self.saves for shape in launches):
            raise Unsupported("it cannot be compiled")

    def time(self, launches):
        assert tuple(launches) == self.compiled[-1]
        saved = [self.saves.get((shape, each.tiles), 0.0) for shape, each in launches.items()]
        if float("inf") in saved:
            raise BrokenArm("it is wrong")
        return LIBRARY_US - sum(saved)


def search(stand: MadeUp, until: float = 1e9) -> Search:
    ticks = iter(range(10_000))
    return Search(stand, lambda: float(next(ticks)), until, lambda said: None)


def test_each_product_gets_the_launch_that_is_fastest_in_the_step():
    stand = MadeUp({(OUT, 3): 5.0, (OUT, 4): 4.0, (FUSED, 4): 20.0, (GATE, 2): 8.0})
    found = search(stand)
    best = found.best(LIBRARY_US)
    assert best.fused
    assert best.step_us == 75.0
    assert {each.shape: each.launch.tiles for each in best.products} == {FUSED: 4, OUT: 3}
    assert found.untried == 0
    assert all(each.failure is None for each in found.tried)


def test_a_product_that_the_library_computes_faster_stays_with_it():
    stand = MadeUp({(OUT, tiles): -3.0 for tiles in (2, 3, 4)} | {(FUSED, 2): 20.0})
    best = search(stand).best(LIBRARY_US)
    assert [each.shape for each in best.products] == [FUSED]
    assert best.step_us == 80.0


def test_where_nothing_is_faster_the_library_stays():
    assert search(MadeUp({})).best(LIBRARY_US) is None


def test_what_cannot_be_compiled_or_is_wrong_is_kept_with_its_reason_and_the_rest_goes_on():
    stand = MadeUp({(FUSED, 0): 0.0, (GATE, 3): float("inf"), (GATE, 4): 6.0, (OUT, 2): 1.0})
    found = search(stand)
    best = found.best(LIBRARY_US)
    assert not best.fused
    assert {each.shape: each.launch.tiles for each in best.products} == {GATE: 4, OUT: 2}
    said = {each.failure.message for each in found.tried if each.failure is not None}
    assert said == {"it cannot be compiled", "it is wrong"}
    assert found.untried == 4  # launches of the set that cannot be compiled


def test_when_the_time_is_over_the_best_so_far_counts_and_the_rest_is_counted():
    stand = MadeUp({(FUSED, 2): 20.0, (FUSED, 4): 30.0})
    found = search(stand, until=0.0)
    best = found.best(LIBRARY_US)
    assert best.step_us == 80.0
    assert len(found.tried) == 2  # the first of either form
    assert found.untried == 10  # four launches of each, and two products left to the library


class Counting:
    """A clock that runs the step, and says that it took a microsecond."""

    def time(self, step, count):
        step()
        return Timing((1.0,) * count, float(count))


@pytest.fixture
def stand():
    torch._dynamo.reset()
    with bench("llama") as b, ready_to_compile(b.model.module):
        on_it = SimpleNamespace(
            loaded=b.model,
            router=b.router,
            cache=b.cache,
            surveyed=b.surveyed,
            token_words=token_table(prompt(5, 2, seed=1), TOKENS),
            device=torch.device("cpu"),
            bench=SimpleNamespace(batch=2, seed=0),
        )
        yield CompiledStand(on_it, Counting())


@pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted where there is no GPU")
def test_a_model_is_compiled_with_products_and_one_that_is_wrong_is_found_out(stand, monkeypatch):
    assert stand.library() == 1.0
    forms = stand.forms()
    assert len(forms) == 5  # four of a layer, whatever their number, and the head
    assert forms[-1] == (ProductShape(2, 61, 32),)
    wanted = {
        shape: ProductLaunch("triton", 64, 4, 1, 2, block_k=64)
        for shape in dict.fromkeys(each[0] for each in forms)
    }
    stand.compile(wanted)
    assert stand.time(wanted) == 1.0
    assert stand.counts() == {shape: 1 if shape.columns == 61 else 3 for shape in wanted}
    right = product_tuning.product
    monkeypatch.setattr(few_rows, "product", lambda *args, **parts: right(*args, **parts) * 1.5)
    with pytest.raises(BrokenArm, match="logits differ"):
        stand.time(wanted)
    other = {shape: ProductLaunch("triton", 32, 4, 1, 2, block_k=64) for shape in wanted}
    monkeypatch.setattr(product_tuning, "product", lambda **parts: torch.ones(2, 128))
    with pytest.raises(BrokenArm, match="from its definition"):
        stand.time(other)
