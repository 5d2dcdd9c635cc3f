"""Products of few rows on a real GPU: every launch on offer, in 16 bits, in graphs, overlapping."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from attnbench.kernels.product_launch import ProductLaunch, ProductShape
from attnbench.kernels.products import product, ring_launches, triton_launches
from attnbench.measure.product_tuning import noise
from attnbench.methods.conformance import BOUNDS
from attnbench.methods.registry import parse
from attnbench.models.compiled import CompiledModel, compiled_model, ready_to_compile
from attnbench.models.few_rows import ProductSurvey
from attnbench.models.product_definition import defined_product
from attnbench.models.step import CapturedStep, DecodeStep, build_layers
from attnbench.models.tables import token_table
from tests.kernels.front import write_late
from tests.models import tiny
from tests.models.bench import TOKENS, bench
from tests.models.tiny import prompt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
CUDA = torch.device("cuda")
HAS_RING = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
# Those of a Llama-3.2-1B step, and two with ragged columns and a depth of few tiles.
SHAPES = (
    ProductShape(4, 3072, 2048, "norm"),
    ProductShape(4, 2048, 2048, "residual"),
    ProductShape(4, 16384, 2048, "norm+gate"),
    ProductShape(4, 2048, 8192, "residual"),
    ProductShape(4, 3000, 1088, "norm"),
    ProductShape(4, 5000, 192, "gate"),
)
ROWS = (1, 2, 3, 8, 9, 16)


def offered(shape: ProductShape) -> tuple[ProductLaunch, ...]:
    """Everything that this GPU may run."""
    return (*(ring_launches(shape) if HAS_RING else ()), *triton_launches(shape))


def error(got: torch.Tensor, right: torch.Tensor) -> float:
    """Relative, in the second norm."""
    return float((got.double() - right).norm() / right.norm())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_launch_on_offer_is_right_and_as_near_to_float64_as_the_library(shape):
    parts = noise(shape, torch.bfloat16, CUDA, seed=1)
    right = defined_product(**parts)
    errors = {launch: error(product(**parts, launch=launch), right) for launch in offered(shape)}
    assert max(errors.values()) < BOUNDS[torch.bfloat16], errors
    if shape.form == "residual":
        library = functional.linear(parts["x"], parts["weights"], parts["bias"])
        bound = 1.05 * error(library + parts["residual"], right)
        assert max(errors.values()) <= bound, (bound, errors)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("form", ["plain", "norm+gate", "residual"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_any_number_of_rows_is_right_in_either_dtype(rows, form, dtype):
    shape = ProductShape(rows, 1000, 576, form)
    parts = noise(shape, dtype, CUDA, seed=rows)
    right = defined_product(**parts)
    for launch in offered(shape)[:3] + triton_launches(shape)[:2]:
        assert error(product(**parts, launch=launch), right) < BOUNDS[dtype], launch


def test_the_head_of_a_large_vocabulary_is_right():
    shape = ProductShape(4, 128256, 2048)
    parts = noise(shape, torch.bfloat16, CUDA, seed=1)
    right = functional.linear(parts["x"], parts["weights"], parts["bias"]).double()
    for launch in offered(shape):
        assert error(product(**parts, launch=launch), right) < BOUNDS[torch.bfloat16], launch


@pytest.mark.parametrize("wait_ns", [0, 1000, 4000, 50_000])
def test_x_is_read_only_after_the_kernel_in_front_has_ended(wait_ns):
    """That kernel lets this one start at once, and writes x at its end."""
    shape = ProductShape(1, 2048, 2048)
    parts = noise(shape, torch.bfloat16, CUDA, seed=1)
    right, late = defined_product(**parts), parts["x"][0].clone()
    length = torch.zeros(1, dtype=torch.int32, device=CUDA)
    for launch in offered(shape)[:4] + triton_launches(shape)[:2]:

        def both(launch: ProductLaunch = launch) -> torch.Tensor:
            write_late(length, 1, parts["x"][0], late, wait_ns)
            return product(**parts, launch=launch)

        both()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = both()
        for _ in range(20):
            parts["x"].fill_(float("nan"))
            graph.replay()
            assert error(out, right) < BOUNDS[torch.bfloat16], launch


def test_a_chain_whose_buffers_are_used_again_gives_the_same_bits_at_every_replay():
    """Kernels overlap their neighbours; memory that one has read another soon writes."""
    wide = noise(ProductShape(4, 8192, 2048, "norm"), torch.bfloat16, CUDA, seed=1)
    narrow = noise(ProductShape(4, 2048, 8192, "residual"), torch.bfloat16, CUDA, seed=2)
    for launch in offered(ProductShape(4, 8192, 2048, "norm"))[:6]:

        def chain(launch: ProductLaunch = launch) -> torch.Tensor:
            h = wide["x"]
            for number in range(24):
                inner = product(**{**wide, "x": h}, launch=launch)
                h = product(**{**narrow, "x": inner, "residual": h}, launch=launch)
                h = h / 4 if number % 3 == 2 else h  # a kernel that knows nothing of the others
            return h

        expected = chain().clone()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = chain()
        wrong = 0
        for _ in range(300):
            graph.replay()
            wrong += not torch.equal(out, expected)
        assert wrong == 0, launch


WIDE = {**tiny.COMMON, "hidden_size": 128, "intermediate_size": 192, "head_dim": 64}


@pytest.mark.parametrize("name", ["llama", "llama-biased", "qwen3"])
@pytest.mark.parametrize("place", [0, -1])
def test_a_compiled_and_captured_step_by_own_kernels_has_the_librarys_logits(
    name, place, monkeypatch
):
    kind, settings = tiny.WORKING[name]
    monkeypatch.setitem(tiny.WORKING, name, (kind, {**settings, **WIDE}))
    table = token_table(prompt(3, 2, seed=1).cuda(), TOKENS)
    with bench(name, device="cuda", dtype=torch.bfloat16) as b:
        layers = build_layers(parse("sdpa"), b.cache, b.surveyed)

        def step(compiled: CompiledModel) -> DecodeStep:
            return DecodeStep(b.model, b.router, b.cache, layers, table, compiled)

        survey = ProductSurvey()
        with ready_to_compile(b.model.module):
            compiled = CompiledModel(b.model.module, {}, survey)
            compiled.seal(step(compiled))
            library = CapturedStep(step(compiled))
            expected = [library().clone() for _ in range(3)]
            kernels = len(library.kernels())
        assert len(survey.sites) == 4
        shapes = {forms[place] for forms in survey.sites} | {ProductShape(2, tiny.VOCAB, 128)}
        launches = {shape: offered(shape)[0] for shape in shapes}
        with compiled_model(b.model.module, launches) as compiled:
            compiled.seal(step(compiled))
            assert compiled.products.total() == 4 * len(layers) + 1
            own = CapturedStep(step(compiled))
            for number in range(6):
                torch.testing.assert_close(own(), expected[number % 3], atol=0.1, rtol=0.05)
            names = own.kernels()
            assert sum("product_kernel" in each for each in names) == 4 * len(layers) + 1
            if place == 0:
                assert len(names) < kernels  # what was fused is no kernel any more
