"""The exact arms of other packages, over stand-ins that hold to the documented interfaces.

A stand-in refuses what the real library would, and computes in float64: what is tested is that
layouts, lengths, scale and pages are what the library is told they are.
"""

from __future__ import annotations

import inspect
import sys
import types
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

import pytest
import torch

from attnbench.errors import Unsupported
from attnbench.methods import registry
from attnbench.methods.base import CacheLength, CacheView
from attnbench.methods.conformance import BOUNDS, Outcome, conform, worst_error
from attnbench.methods.fa3 import PACKAGE as FA3
from attnbench.methods.fa3 import Fa3
from attnbench.methods.flash_attn import FlashAttn
from attnbench.methods.flashinfer import FlashInfer, page_rows, paged
from attnbench.methods.flex import Flex
from attnbench.methods.packages import Package, is_installed
from attnbench.methods.sdpa_varlen import SdpaVarlen
from attnbench.methods.trial import Case, Trial
from tests.methods.fakes import flashinfer as fake_flashinfer
from tests.methods.fakes import kvcache, varlen

CPU = torch.device("cpu")
GPU_ONLY = ("fa3", "flash_attn", "flashinfer", "sdpa_varlen", "flex,impl=compiled")


def module(name: str, **contents: object) -> types.ModuleType:
    """A module that Python finds and that holds these."""
    made = types.ModuleType(name)
    made.__spec__ = ModuleSpec(name, None)
    vars(made).update(contents)
    return made


@pytest.fixture
def fakes(monkeypatch):
    """Every package, as a stand-in."""
    import torch.nn.attention.varlen as real

    monkeypatch.setattr(real, "varlen_attn", varlen.varlen_attn_2_11)
    for name, contents in {
        "fa3_fwd_interface": {"flash_attn_with_kvcache": kvcache.fa3},
        "flash_attn": {"flash_attn_with_kvcache": kvcache.fa2},
        "flashinfer": vars(fake_flashinfer),
    }.items():
        monkeypatch.setitem(sys.modules, name, module(name, **contents))


class AnyDevice:
    """A method that is let run wherever its library is."""

    def check(self, shape):
        del shape


class Fa3Here(AnyDevice, Fa3):
    pass


class FlashAttnHere(AnyDevice, FlashAttn):
    pass


class FlashInferHere(AnyDevice, FlashInfer):
    pass


class SdpaVarlenHere(AnyDevice, SdpaVarlen):
    pass


HERE = (
    Fa3Here(),
    Fa3Here(append="before"),
    FlashAttnHere(num_splits=4),
    FlashInferHere(),
    SdpaVarlenHere(),
)


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("method", HERE, ids=lambda method: method.label)
def test_an_arm_of_another_package_conforms_over_its_documented_interface(method):
    checks = conform(method, CPU, dtypes=(torch.float32, torch.bfloat16))
    assert [check for check in checks if check.outcome is Outcome.FAILED] == []
    assert sum(check.passed for check in checks) >= 20


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_flex_attention_itself_is_right_uncompiled(dtype):
    method = Flex(impl="torch")
    for case in (Case(31, 128, 3), Case(300, 64, 8, batch=2)):
        trial = Trial.make(case, dtype, CPU, appended=2)
        got = trial.appended_by(method.layer(trial.shape))
        wanted = trial.appended_by(method.reference_layer(trial.shape))
        assert worst_error(got, wanted)[0] < BOUNDS[dtype]


def test_varlen_attention_is_told_of_groups_where_it_wants_to_be(monkeypatch):
    import torch.nn.attention.varlen as real

    monkeypatch.setattr(real, "varlen_attn", varlen.varlen_attn_2_13)
    for group in (1, 4):
        trial = Trial.make(Case(9, 64, group, batch=2), torch.float32, CPU)
        out = trial.first_output(SdpaVarlenHere().layer(trial.shape))
        wanted = trial.first_output(SdpaVarlenHere().reference_layer(trial.shape))
        torch.testing.assert_close(out.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", GPU_ONLY)
def test_an_arm_for_a_gpu_is_refused_on_a_cpu_and_says_what_to_do(spec):
    method = registry.parse(spec)
    with pytest.raises(Unsupported, match="CUDA GPU") as refusal:
        method.check(Case(8, 64, 4).shape(torch.float32, CPU, 1))
    assert refusal.value.hint
    assert method.label not in {each.label for each in registry.exact_methods("cpu")}


def test_every_arm_for_a_gpu_is_among_the_exact_methods_there():
    found = registry.exact_methods("cuda")
    labels = {method.resolved(torch.device("cuda")).label for method in found}
    assert labels >= {"fa3", "fa3,append=before", "flash_attn", "flashinfer", "sdpa_varlen"}
    assert "flex,impl=compiled" in labels


@pytest.mark.parametrize("spec", ["fa3", "flash_attn", "flashinfer"])
def test_a_missing_package_is_named_with_how_to_get_it_before_any_gpu_is_asked(spec, monkeypatch):
    for name in ("fa3_fwd_interface", "flash_attn_interface", "flash_attn", "flashinfer"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    method = registry.parse(spec)
    if any(find_spec(name) for name in sys.modules[type(method).__module__].PACKAGE.modules):
        pytest.skip("it is installed here")
    with pytest.raises(Unsupported, match="needs the package that has") as refusal:
        method.check_machine(torch.device("cuda"))
    assert "pip install" in refusal.value.hint


def test_a_submodule_is_looked_for_without_importing_the_package_around_it(tmp_path, monkeypatch):
    package = tmp_path / "around"
    (package / "within").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "within" / "__init__.py").write_text("")
    (package / "within" / "leaf.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert is_installed("around.within.leaf")
    assert not is_installed("around.within.other")
    assert not is_installed("around.leaf")
    assert not is_installed("nowhere.at.all")
    with pytest.raises(Unsupported, match="cannot be imported: imported"):
        Package(("around.within.leaf",), install="mend it").load()


def test_a_fused_step_at_the_length_of_prefill_touches_no_length(fakes):
    trial = Trial.make(Case(9, 64, 4, batch=3), torch.float32, CPU, appended=2)
    layer, cache = Fa3().layer(trial.shape), trial.cache()
    layer.prefill(cache)
    version = layer.lengths._version
    step = trial.steps[0]
    layer.decode(step.q, step.k, step.v)
    assert layer.lengths._version == version  # a captured step would replay a write
    cache.length.advance()
    layer.decode(step.q, step.k, step.v)
    assert layer.lengths.tolist() == [10, 10, 10]
    layer.reset()
    assert layer.lengths.tolist() == [9, 9, 9]


@pytest.mark.parametrize(("capacity", "kv_heads", "batch"), [(96, 2, 3), (68, 3, 2), (61, 3, 1)])
def test_a_page_is_a_stretch_of_rows_of_every_head_where_the_cache_lies(capacity, kv_heads, batch):
    shape = Case(8, 64, 1, batch=batch, kv_heads=kv_heads).shape(torch.float32, CPU, 1)
    page = page_rows(type(shape)(**{**vars(shape), "capacity": capacity}))
    rows = torch.randn(batch, kv_heads, capacity, 4)
    pages = paged(rows, page)
    assert pages.data_ptr() == rows.data_ptr()
    assert len(pages) * page == (batch * kv_heads - kv_heads + 1) * capacity
    for b in range(batch):
        first = b * kv_heads * capacity // page
        for number in range(capacity // page):
            wanted = rows[b, :, number * page : (number + 1) * page]
            assert torch.equal(pages[first + number], wanted)


def test_a_cache_that_is_not_contiguous_cannot_be_read_as_pages():
    with pytest.raises(Unsupported, match="cannot be read as pages"):
        paged(torch.zeros(1, 8, 2, 4).transpose(1, 2), 4)


def test_the_packed_cache_is_laid_out_once_for_a_length_and_again_when_it_grows(fakes):
    trial = Trial.make(Case(9, 64, 4, batch=2), torch.float32, CPU, appended=2)
    layer, cache = SdpaVarlen().layer(trial.shape), trial.cache()
    layer.prefill(cache)
    place, step = layer.k.data_ptr(), trial.steps[0]
    layer.decode(step.q, step.k, step.v)
    layer.reset()
    assert layer.k.data_ptr() == place  # a captured step would replay on the old place
    assert layer.k.shape == (2 * 10, 2, 64)
    assert not layer.by_head(layer.k)[:, :, 9].any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.skipif(not FA3.present, reason="needs the package fa3-fwd")
def test_the_stand_in_of_fa3_has_the_signature_of_the_real_one():
    real = inspect.signature(FA3.load().flash_attn_with_kvcache).parameters
    assert list(real) == list(inspect.signature(kvcache.fa3).parameters)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("spec", ["flex,impl=compiled", "sdpa_varlen", "fa3", "fa3,append=before"])
def test_an_arm_is_right_at_a_length_that_no_tile_divides(spec):
    cuda = torch.device("cuda")
    method = registry.parse(spec)
    trial = Trial.make(Case(4097, 128, 4, batch=2), torch.bfloat16, cuda, appended=2)
    try:
        method.check(trial.shape)
    except Unsupported as refusal:
        pytest.skip(refusal.message)
    got = trial.appended_by(method.layer(trial.shape))
    wanted = trial.appended_by(method.reference_layer(trial.shape))
    assert worst_error(got, wanted)[0] < BOUNDS[trial.shape.dtype]


def test_a_cache_view_of_another_length_is_read_to_its_own_end(fakes):
    """Rows behind the newest hold no number: none of the stand-ins is told to read them."""
    trial = Trial.make(Case(40, 64, 4, batch=2), torch.float32, CPU)
    for method in HERE:
        cache = trial.cache()
        for rows in (cache.k, cache.v):
            rows[:, :, 41:] = float("nan")
        layer = method.layer(trial.shape)
        layer.prefill(CacheView(cache.k, cache.v, CacheLength(CPU, 40)))
        step = trial.steps[0]
        assert layer.decode(step.q, step.k, step.v).isfinite().all(), method.label
