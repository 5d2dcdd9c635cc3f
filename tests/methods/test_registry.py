"""What a specification names, and what a wrong one is told."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from attnbench.errors import AttnbenchError, UsageError
from attnbench.methods import registry
from attnbench.methods.base import Family
from attnbench.methods.dcr_topk import DcrTopK
from attnbench.methods.int4_kv import Int4Kv
from attnbench.methods.int8_kv import Int8Kv
from attnbench.methods.oracle_topk import OracleTopK
from attnbench.methods.random_k import RandomK
from attnbench.methods.sdpa import Sdpa
from attnbench.methods.sink_window import SinkWindow
from tests.third_party.my_window import MyWindow

EXAMPLE = Path(__file__).parents[1] / "third_party" / "my_window.py"


def test_every_built_in_method_is_found_by_scanning():
    assert set(registry.names()) >= {
        "sdpa",
        "sdpa_packed",
        "sdpa_repeat_kv",
        "eager_repeat_kv",
        "flash_decode",
        "int8_kv",
        "int4_kv",
        "oracle_topk",
        "dcr_topk",
        "coded_topk",
        "sink_window",
        "zero_cost",
        "uniform_mean",
        "random_k",
    }


def test_parameters_take_the_type_of_their_field():
    assert registry.parse("sink_window,sinks=2,window=64") == SinkWindow(sinks=2, window=64)
    assert registry.parse("random_k, share=0.25, seed=7") == RandomK(share=0.25, seed=7)
    assert registry.parse("sdpa,backend=math") == Sdpa(backend="math")
    assert registry.parse("int8_kv,impl=torch") == Int8Kv(impl="torch")
    assert registry.parse("int4_kv,keys=token,group=32") == Int4Kv(keys="token", group=32)
    assert registry.parse("oracle_topk,shared=true") == OracleTopK(shared=True)
    assert registry.parse("dcr_topk,generation=m4,scorer=cache") == DcrTopK(
        scorer="cache", generation="m4"
    )


@pytest.mark.parametrize(
    "spec",
    [
        "sdpa",
        "sdpa,backend=flash",
        "random_k,share=0.3,seed=2",
        "dcr_topk,sharing=group,generation=m1",
    ],
)
def test_a_label_parses_to_the_method_that_it_names(spec):
    assert registry.parse(spec).label == spec
    assert registry.parse(registry.parse(spec).label) == registry.parse(spec)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("", "'' names no method"),
        (",window=3", "',window=3' names no method"),
        ("flash_decod", "did you mean flash_decode?"),
        ("flash_decode,kernel=rings", "there is no kernel=rings"),
        ("sdpa,backnd=math", "did you mean backend?"),
        ("sdpa,backend=maths", "did you mean math?"),
        ("sink_window,window=many", "is not a whole number"),
        ("random_k,share=lots", "is not a number"),
        ("int8_kv,impl=tritn", "did you mean triton?"),
        ("random_k,share=2", "is not a share"),
        ("oracle_topk,share=0", "is not a share"),
        ("int4_kv,group=0", "holds no token"),
        ("int4_kv,keys=chanel", "did you mean channel?"),
        ("sink_window,window=0", "keeps nothing"),
        ("sink_window,window=4,window=5", "'window' more than once"),
        ("zero_cost,x=1", "has no parameter 'x'"),
        ("no_such_package.methods:Thing", "cannot import"),
        ("no_such_file.py:Thing", "there is no file"),
        ("attnbench.methods.sdpa:Sdp", "did you mean Sdpa?"),
        ("attnbench.methods.sdpa:SdpaLayer", "is no method"),
        (f"{EXAMPLE}:MyWindo", "did you mean MyWindow?"),
    ],
)
def test_a_wrong_specification_says_what_is_nearest(spec, said):
    with pytest.raises(UsageError) as refusal:
        registry.parse(spec)
    assert said in refusal.value.message
    assert refusal.value.hint


def test_a_class_of_another_package_is_a_method():
    assert registry.parse("tests.third_party.my_window:MyWindow,recent=9") == MyWindow(recent=9)


def test_a_class_in_a_file_is_a_method_and_the_file_is_loaded_once():
    first = registry.parse(f"{EXAMPLE}:MyWindow,recent=9")
    assert first.label == "my_window,recent=9"
    assert type(first) is type(registry.parse(f"{EXAMPLE}:MyWindow"))


def test_a_file_that_fails_while_loading_says_why_and_can_be_mended(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("raise ImportError('no flux capacitor')")
    with pytest.raises(AttnbenchError, match="no flux capacitor"):
        registry.parse(f"{broken}:Method")
    broken.write_text(EXAMPLE.read_text())
    assert registry.parse(f"{broken}:MyWindow").name == "my_window"


def test_a_class_that_lacks_something_is_told_what(tmp_path):
    partial = tmp_path / "partial.py"
    partial.write_text(
        "from attnbench.methods.base import Method\nclass Partial(Method):\n    name = 'partial'\n"
    )
    with pytest.raises(UsageError, match="lacks layer, reference, family, source"):
        registry.parse(f"{partial}:Partial")


def test_the_hash_changes_with_the_source_and_covers_the_kernels(tmp_path):
    copy = tmp_path / "mine.py"
    copy.write_text(EXAMPLE.read_text())
    before = registry.source_sha256(registry.parse(f"{copy}:MyWindow"))
    other = tmp_path / "other.py"
    other.write_text(EXAMPLE.read_text() + "\n# changed\n")
    assert registry.source_sha256(registry.parse(f"{other}:MyWindow")) != before
    names = {path.name for path in registry.source_files(Int8Kv)}
    assert names >= {"int8_kv.py", "int8_layers.py", "int8_decode.py", "splits.py"}


def test_the_hash_of_one_file_is_sha256_of_its_bytes(tmp_path):
    alone = tmp_path / "alone.py"
    alone.write_text(
        "from tests.third_party.my_window import MyWindow as Base\nclass Mine(Base): ..."
    )
    found = registry.source_sha256(registry.parse(f"{alone}:Mine"))
    assert found == hashlib.sha256(alone.read_bytes()).hexdigest()


def test_exact_methods_are_exact_and_those_of_a_cpu_leave_out_the_gpu_kernel():
    cpu = [method.label for method in registry.exact_methods("cpu")]
    cuda = [method.label for method in registry.exact_methods("cuda")]
    assert all(registry.parse(label).family is Family.EXACT for label in cuda)
    assert {"sdpa", "sdpa,backend=flash", "sdpa_repeat_kv", "eager_repeat_kv"} <= set(cpu)
    assert "flash_decode" in cuda
    assert "flash_decode" not in cpu
    assert {f"sdpa,backend={b}" for b in ("flash", "efficient", "cudnn", "math")} <= set(cuda)


def test_an_open_implementation_is_fixed_by_the_device_or_listed_in_full():
    assert Int8Kv().resolved(torch.device("cpu")).impl == "torch"
    assert Int8Kv().resolved(torch.device("cuda")).impl == "triton"
    assert Int8Kv(impl="torch").resolved(torch.device("cuda")).impl == "torch"
    assert [m.impl for m in registry.implementations_of(Int8Kv())] == ["triton", "torch"]
