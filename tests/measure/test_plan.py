"""What a run will do is decided, or refused, before anything is measured."""

from __future__ import annotations

import re
from dataclasses import replace

import msgspec
import pytest

from attnbench.errors import DoesNotFit, ModelError, Unsupported, UsageError
from attnbench.measure import plan as planning
from attnbench.measure.plan import plan_decode
from attnbench.measure.tasks import Fill
from attnbench.methods import packages
from attnbench.methods.base import Family
from attnbench.methods.registry import parse, source_sha256
from attnbench.protocol.cell import Mode, Scope
from attnbench.quality.text import TextTooShort
from tests.measure.odd_methods import Halved
from tests.measure.planned import CPU, file_of, request
from tests.models.tiny import COMMON, build


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    """Whatever machine runs the test, the plan sees this one."""
    set_machine(monkeypatch, gpu=False)


def set_machine(monkeypatch, *, gpu: bool, free_bytes: int = 8 << 30) -> None:
    monkeypatch.setattr(planning, "has_gpu", lambda: gpu)
    monkeypatch.setattr(planning, "device_facts", lambda kind: facts(kind, free_bytes))


def facts(kind: str, free_bytes: int):
    name = "A GPU" if kind == "cuda" else CPU.name
    return msgspec.structs.replace(CPU, kind=kind, name=name, memory_free_bytes=free_bytes)


def labels(found) -> list[str]:
    return [arm.label for arm in found.arms]


def test_a_bare_run_holds_every_exact_arm_a_quantised_a_sparse_one_and_the_ceiling():
    found = plan_decode(request())
    families = {arm.label.split(",")[0]: arm.family for arm in found.arms}
    exact = {name for name, family in families.items() if family is Family.EXACT}
    assert exact == {"sdpa", "sdpa_packed", "sdpa_repeat_kv", "eager_repeat_kv"}
    assert families.keys() - exact == {"int8_kv", "sink_window", "zero_cost"}
    assert not any(arm.asked_for for arm in found.arms)


@pytest.mark.parametrize(
    ("given", "meant"), [("half.py", "half.py:Class"), ("my/half.py:Half", "my/half.py:Half")]
)
def test_the_file_of_a_method_in_the_place_of_a_model_is_told_where_it_belongs(given, meant):
    with pytest.raises(UsageError, match="not a model") as caught:
        plan_decode(request(model=given))
    assert f"`--method {meant}`" in caught.value.hint


def test_without_a_gpu_a_run_is_float32_eager_on_the_cpu():
    found = plan_decode(request())
    assert (found.device, found.dtype, found.cells) == (
        "cpu",
        "float32",
        ((Scope.STEP, Mode.EAGER),),
    )
    assert (found.context, found.fill) == (1024, Fill.PREFILLED)


def test_with_a_gpu_a_run_is_bfloat16_compiled_and_has_the_projects_own_kernel(monkeypatch):
    set_machine(monkeypatch, gpu=True)
    found = plan_decode(request())
    assert (found.device, found.dtype) == ("cuda", "bfloat16")
    assert found.cells == ((Scope.STEP, Mode.COMPILED),)
    assert {"flash_decode", "int8_kv,impl=triton", "sdpa,backend=cudnn"} <= set(labels(found))


def test_an_exact_arm_whose_package_is_missing_is_left_out_and_named(monkeypatch):
    set_machine(monkeypatch, gpu=True)
    monkeypatch.setattr(packages, "is_installed", lambda module: module.startswith("torch."))
    planned = plan_decode(request())
    assert {"sdpa_varlen", "flex,impl=compiled"} <= set(labels(planned))
    missing = {"fa3", "fa3,append=before", "flash_attn", "flash_attn,append=before", "flashinfer"}
    assert not missing & set(labels(planned))
    assert {label for label, why in planned.skipped if "needs the package" in why} == missing
    with pytest.raises(Unsupported, match="fa3 needs the package"):
        plan_decode(request(methods=("fa3",)))


def test_an_exact_arm_is_planned_where_its_package_is_found_without_importing_it(monkeypatch):
    set_machine(monkeypatch, gpu=True)
    monkeypatch.setattr(packages, "is_installed", lambda module: True)
    planned = plan_decode(request())
    here = {"fa3", "fa3,append=before", "flash_attn", "flashinfer", "sdpa,backend=fa3"}
    assert here <= set(labels(planned))
    assert not planned.skipped


def test_every_scope_is_a_cell_in_every_mode(monkeypatch):
    set_machine(monkeypatch, gpu=True)
    both = request(scopes=tuple(Scope), modes=tuple(Mode))
    ways = tuple((s, m) for s in Scope for m in Mode)
    assert plan_decode(both).cells == ways[:-1]  # attention alone has nothing to compile
    assert ways[-1] == (Scope.ATTENTION, Mode.COMPILED)
    scopes = plan_decode(request(scopes=tuple(Scope)))
    assert scopes.cells == ((Scope.STEP, Mode.COMPILED), (Scope.ATTENTION, Mode.GRAPH))
    with pytest.raises(UsageError, match="nothing to compile"):
        plan_decode(request(scopes=(Scope.ATTENTION,), modes=(Mode.COMPILED,)))


@pytest.mark.parametrize("mode", [Mode.GRAPH, Mode.COMPILED])
def test_a_captured_mode_needs_a_gpu(mode):
    with pytest.raises(Unsupported, match=f"{mode} needs a CUDA GPU") as refusal:
        plan_decode(request(modes=(mode,)))
    assert "--mode" in refusal.value.hint


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch": 0}, "--batch 0"),
        ({"batch": -3}, "--batch -3"),
        ({"threads": 0}, "--threads 0"),
        ({"seed": -1}, "--seed -1"),
        ({"context": 0}, "context of 0 tokens"),
        ({"context": -5}, "context of -5 tokens"),
        ({"dtype": "float8"}, "no dtype is called 'float8'"),
        ({"device": "tpu"}, "no device is called 'tpu'"),
    ],
)
def test_numbers_and_names_that_make_no_sense_are_usage_errors(changes, said):
    with pytest.raises(UsageError, match=re.escape(said)) as refusal:
        plan_decode(request(**changes))
    assert refusal.value.hint


def test_a_context_beyond_the_model_is_refused_with_its_limit():
    with pytest.raises(UsageError, match="100000 tokens") as refusal:
        plan_decode(request(context=100_000))
    assert "4096" in refusal.value.hint


def test_a_context_that_leaves_no_position_to_decode_at_runs_with_a_remark():
    remark, shorter = plan_decode(request(context=4096)).remarks
    assert shorter.startswith("quality is judged after 4032 tokens, not 4096")
    assert "4096 positions" in remark
    assert plan_decode(request(context=4095, quality=None)).remarks == ()
    assert plan_decode(request(context=4032)).remarks == ()


def test_more_threads_than_cores_are_refused():
    assert plan_decode(request(threads=CPU.cores)).request.threads == CPU.cores
    with pytest.raises(UsageError, match="more than the 2 cores"):
        plan_decode(request(threads=CPU.cores + 1))


def test_a_text_that_is_too_short_for_prompts_or_for_quality_is_refused_at_once(tmp_path):
    text = file_of(tmp_path, "a few words " * 100)
    with pytest.raises(TextTooShort, match="too few for one window of 1088"):
        plan_decode(request(text=text))
    small = request(text=text, context=128)
    with pytest.raises(TextTooShort, match="too few for 2 windows of 193"):
        plan_decode(small)
    assert plan_decode(replace(small, quality=None)).context == 128


def test_a_folder_without_a_tokenizer_is_refused_at_once(tmp_path):
    build("llama", COMMON).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no tokenizer") as refusal:
        plan_decode(request(model=str(tmp_path), context=32))
    assert "tokenizer's files" in refusal.value.hint


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_text_that_cannot_be_read_is_refused_at_once(tmp_path, name):
    file_of(tmp_path, "", "empty")
    with pytest.raises(UsageError, match=name):
        plan_decode(request(text=tmp_path / name))


def test_a_model_that_is_not_there_is_a_model_error():
    with pytest.raises(ModelError, match="no-such-model"):
        plan_decode(request(model="./no-such-model.gguf"))


def test_weights_that_are_random_are_filled_with_noise_and_trained_ones_with_text():
    assert plan_decode(request(model="preset:llama-3.2-1b")).fill is Fill.SYNTHETIC
    assert plan_decode(request()).fill is Fill.PREFILLED


def test_what_does_not_fit_says_how_much_is_needed_and_free_and_what_fits(monkeypatch):
    set_machine(monkeypatch, gpu=False, free_bytes=8 << 30)
    large = request(model="preset:llama-3.2-1b", context=32768, batch=4)
    with pytest.raises(DoesNotFit) as refusal:
        plan_decode(large)
    said = refusal.value.message
    assert "8.0 GiB are free on A processor" in said
    # 1.24e9 weights of 4 bytes; 16 layers of 8 KV heads of 64, key and value, 4 sequences.
    assert "4.6 GiB of weights" in said
    assert "8.0 GiB of cache" in said
    assert "13.6 GiB" in said
    largest = int(re.search(r"\d+$", refusal.value.hint)[0])
    assert plan_decode(replace(large, context=largest)).context == largest
    with pytest.raises(DoesNotFit):
        plan_decode(replace(large, context=largest + 1))


def test_where_not_even_the_weights_fit_no_context_is_promised(monkeypatch):
    set_machine(monkeypatch, gpu=False, free_bytes=2 << 30)
    with pytest.raises(DoesNotFit) as refusal:
        plan_decode(request(model="preset:llama-3.2-1b", context=128))
    assert "smaller model" in refusal.value.hint


def test_where_no_context_fits_the_largest_batch_that_does_is_named(monkeypatch):
    set_machine(monkeypatch, gpu=False, free_bytes=8 << 30)
    many = request(model="preset:llama-3.2-1b", context=128, batch=10**6)
    with pytest.raises(DoesNotFit) as refusal:
        plan_decode(many)
    largest = int(re.search(r"\d+$", refusal.value.hint)[0])
    assert plan_decode(replace(many, batch=largest)).request.batch == largest
    with pytest.raises(DoesNotFit):
        plan_decode(replace(many, batch=largest + 1))


def test_what_is_asked_for_runs_beside_the_exact_arms_and_the_ceiling_alone():
    found = plan_decode(request(methods=("sink_window,window=32",)))
    others = [arm for arm in found.arms if arm.family is not Family.EXACT]
    assert [arm.label for arm in others] == ["sink_window,window=32,impl=torch", "zero_cost"]
    assert [arm.asked_for for arm in others] == [True, False]


def test_a_method_named_twice_is_one_arm():
    found = plan_decode(request(methods=("int8_kv", "int8_kv,impl=torch", "sdpa")))
    assert labels(found).count("int8_kv,impl=torch") == 1
    assert labels(found).count("sdpa") == 1
    assert next(arm for arm in found.arms if arm.label == "sdpa").asked_for


@pytest.mark.parametrize(
    ("spec", "nearest"),
    [("int8_kw", "int8_kv"), ("sink_window,windw=3", "window"), ("int8_kv,impl=trton", "triton")],
)
def test_an_unknown_method_parameter_or_choice_is_refused_with_the_nearest(spec, nearest):
    with pytest.raises(UsageError, match=f"did you mean {nearest}"):
        plan_decode(request(methods=(spec,)))


def test_a_method_that_replaces_what_was_trained_is_refused():
    with pytest.raises(UsageError, match="proves nothing"):
        plan_decode(request(methods=("tests.measure.odd_methods:Replacing",)))


def test_two_names_of_one_selection_are_refused_before_anything_is_timed():
    strided, recent = "evict,policy=holo_strided,budget=64", "evict,policy=recent,budget=64"
    with pytest.raises(UsageError, match="one selection under two names"):
        plan_decode(request(methods=(recent, strided)))
    others = (strided, "evict,budget=64", "sink_window,sinks=0,window=64", "evict,policy=recent")
    labels = [arm.label for arm in plan_decode(request(methods=others)).arms]
    assert {"evict,policy=holo_strided,budget=64", "evict,budget=64"} <= set(labels)


@pytest.mark.parametrize("spec", ["cy_bias", "alibi,learn=true", "decay_gate", "rope"])
def test_a_scheme_is_refused_by_decode_for_it_has_no_verdict_in_a_trained_model(spec):
    with pytest.raises(UsageError, match="trained with"):
        plan_decode(request(methods=(spec,)))


@pytest.mark.parametrize("spec", ["flash_decode", "int8_kv,impl=triton"])
def test_a_kernel_asked_for_by_name_that_cannot_run_here_is_a_typed_error(spec):
    with pytest.raises(Unsupported, match="needs a CUDA GPU"):
        plan_decode(request(methods=(spec,)))


def test_two_classes_of_one_label_are_refused_rather_than_one_of_them_forgotten():
    with pytest.raises(UsageError, match="both called sdpa"):
        plan_decode(request(methods=("tests.measure.odd_methods:Namesake",)))


def test_the_reference_backend_is_timed_in_the_pilot_alone_unless_asked_for():
    def pilot_only(found):
        return [arm.label for arm in found.arms if arm.pilot_only]

    slow = ["eager_repeat_kv", "sdpa,backend=math", "sdpa,backend=flash", "sdpa_repeat_kv"]
    assert pilot_only(plan_decode(request())) == slow
    asked = plan_decode(request(methods=("sdpa,backend=math",)))
    assert pilot_only(asked) == [label for label in slow if label != "sdpa,backend=math"]


def test_on_a_cpu_the_flash_backend_is_plain_sdpa_and_no_baseline_beside_it():
    def twins(found):
        return {arm.label: arm.twin for arm in found.arms if arm.twin}

    assert twins(plan_decode(request())) == {"sdpa,backend=flash": "sdpa"}
    assert twins(plan_decode(request(methods=("sdpa,backend=flash",)))) == {}


@pytest.mark.parametrize("parameters", ["", ",share=0.25"])
def test_a_method_of_another_package_keeps_the_target_that_finds_it(parameters):
    target = "tests.measure.odd_methods:Halved"
    (arm, *_) = plan_decode(request(methods=(target + parameters,))).arms
    assert arm.label == "halved" + parameters
    assert arm.spec == target + parameters
    assert parse(arm.spec) == Halved(share=0.25 if parameters else 0.5)


def test_an_implementation_chosen_by_device_is_part_of_label_and_spec():
    (arm, *_) = plan_decode(request(methods=("int8_kv",))).arms
    assert (arm.label, arm.spec) == ("int8_kv,impl=torch", "int8_kv,impl=torch")


def test_the_source_of_every_arm_is_hashed_when_the_run_is_planned():
    found = plan_decode(request())
    assert {arm.label: arm.source_sha256 for arm in found.arms} == {
        arm.label: source_sha256(parse(arm.spec)) for arm in found.arms
    }
