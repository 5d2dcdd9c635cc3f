"""Products by own kernels in a compiled model, interpreted: the same logits, and what is fused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnbench.errors import Unsupported
from attnbench.kernels.product_launch import ProductLaunch, ProductShape
from attnbench.models import few_rows
from attnbench.models.compiled import CompiledModel, compiled_model, ready_to_compile
from attnbench.models.few_rows import ProductSurvey
from attnbench.models.product_definition import defined_product
from attnbench.models.step import DecodeStep
from tests.models.bench import bench
from tests.models.test_compiled import step_of

LAUNCH = ProductLaunch("triton", block_n=64, num_warps=4, on_an_sm=1, tiles=2, block_k=64)


def one_step(step: DecodeStep) -> torch.Tensor:
    """Logits of the first step."""
    logits = step().clone()
    step.reset()
    return logits


def launches(*products: tuple[int, int, str], rows: int = 2) -> dict[ProductShape, ProductLaunch]:
    """(columns, depth, form) of each product."""
    return {ProductShape(rows, *product): LAUNCH for product in products}


# As `tests.models.tiny` has the sizes: query, key and value; output; gate and up; down; the head.
LLAMA = launches(
    (64, 32, "norm"),
    (32, 32, "residual"),
    (96, 32, "norm+gate"),
    (32, 48, "residual"),
    (61, 32, "plain"),
)


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()


def test_a_compiled_step_by_own_kernels_has_the_same_logits_and_is_put_back():
    with bench("llama") as b:
        eager = one_step(step_of(b, "sdpa"))
        head = b.model.module.get_output_embeddings()
        with compiled_model(b.model.module, LLAMA) as compiled:
            compiled.seal(step_of(b, "sdpa", compiled))
            b.cache.reset(b.cache.length.tokens)
            assert head._compiled_call_impl is None
            found = one_step(step_of(b, "sdpa", compiled))
            assert compiled.products == {
                shape: 1 if shape.columns == 61 else 3 for shape in LLAMA
            }  # of three layers; one head
            compiled.relaunch({**LLAMA, ProductShape(2, 61, 32): replace(LAUNCH, block_n=32)})
            again = one_step(step_of(b, "sdpa", compiled))
            with pytest.raises(ValueError, match="compiled anew"):
                compiled.relaunch({})
        torch.testing.assert_close(found, eager, atol=1e-4, rtol=0)
        torch.testing.assert_close(again, eager, atol=1e-4, rtol=0)
        assert not torch.equal(found, eager)  # else the library computed them
        assert few_rows.chosen.launches == {}
        assert torch.equal(one_step(step_of(b, "sdpa")), eager)


def test_with_biases_and_query_norms_what_can_be_fused_is():
    """A biased Llama, tied to nothing; products in half of their forms."""
    chosen = launches((512, 32, "norm"), (32, 256, "residual"), (32, 48, "plain"))
    with bench("llama-biased") as b:
        eager = one_step(step_of(b, "sdpa"))
        with compiled_model(b.model.module, chosen) as compiled:
            compiled.seal(step_of(b, "sdpa", compiled))
            b.cache.reset(b.cache.length.tokens)
            found = one_step(step_of(b, "sdpa", compiled))
        assert compiled.products == dict.fromkeys(chosen, 3)
        torch.testing.assert_close(found, eager, atol=1e-4, rtol=0)


def test_a_kernel_for_a_product_that_the_model_has_not_is_refused():
    with (
        bench("llama") as b,
        compiled_model(b.model.module, launches((4096, 32, "norm"))) as compiled,
        pytest.raises(Unsupported, match=r"does not have.*4096"),
    ):
        compiled.seal(step_of(b, "sdpa", compiled))


def forms_of(name: str, dtype: torch.dtype, batch: int = 2) -> list[tuple[str, ...]]:
    """What the products of a model's layers could be, in the compiler's order."""
    survey = ProductSurvey()
    with bench(name, batch, dtype=dtype) as b, ready_to_compile(b.model.module):
        compiled = CompiledModel(b.model.module, {}, survey)
        compiled.seal(step_of(b, "sdpa", compiled, batch))
    return [tuple(shape.form for shape in forms) for forms in survey.sites]


LLAMA_FORMS = [
    ("norm", "plain"),
    ("residual", "plain"),
    ("norm+gate", "gate", "norm", "plain"),
    ("residual", "plain"),
]


def test_in_sixteen_bits_the_same_is_recognised_between_conversions():
    assert forms_of("llama", torch.bfloat16) == LLAMA_FORMS


def test_fused_products_in_sixteen_bits_give_the_same_logits(monkeypatch):
    """The kernel is interpreted wrongly in bfloat16, so its definition stands in for it."""

    def defined(x, weights, *, launch, **parts):
        return defined_product(x, weights, **parts).to(x.dtype)

    monkeypatch.setattr(few_rows, "product", defined)
    with bench("llama", dtype=torch.bfloat16) as b:
        eager = one_step(step_of(b, "sdpa"))
        with compiled_model(b.model.module, LLAMA) as compiled:
            compiled.seal(step_of(b, "sdpa", compiled))
            b.cache.reset(b.cache.length.tokens)
            found = one_step(step_of(b, "sdpa", compiled))
        assert compiled.products.total() == 13
        torch.testing.assert_close(found, eager, atol=0.1, rtol=0.02)


def test_the_operation_without_a_launch_is_refused():
    with pytest.raises(Unsupported, match="no kernel was chosen"):
        torch.ops.attnbench.product(
            torch.zeros(2, 32), torch.zeros(8, 32), None, None, None, 0.0, False
        )


def test_the_operation_says_beforehand_what_it_gives():
    with few_rows.launched_so(LLAMA):
        torch.library.opcheck(
            few_rows.few_rows,
            (torch.randn(2, 32), torch.randn(61, 32), None, None, None, 0.0, False),
            test_utils=("test_schema", "test_faketensor"),
        )
