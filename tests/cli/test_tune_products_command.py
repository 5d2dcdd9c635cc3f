"""`attnbench methods tune-products` as a user runs it, with a worker that only says what it found;
and `attnbench decode --products`, which hands that to every worker."""

from __future__ import annotations

import json

import msgspec
import pytest

from attnbench.kernels.product_launch import ChosenProduct, ProductLaunch, ProductShape
from attnbench.measure import plan as planning
from attnbench.measure import products_tuned
from attnbench.measure.answers import ProductResult, TriedProducts
from attnbench.measure.layout import bench_of
from attnbench.measure.plan import DecodeRequest, planned
from attnbench.measure.tasks import ArmFailure, ProductTask
from attnbench.models.product_table import read_products
from attnbench.protocol.cell import Mode
from attnbench.protocol.presets import preset
from tests.measure.planned import CPU

GPU = msgspec.structs.replace(
    CPU, kind="cuda", name="A GPU", compute_capability="9.0", driver="1.2"
)
MODEL = "preset:llama-3.2-1b"
ARGUMENTS = ("methods", "tune-products", "--model", MODEL, "--batch", "4")
OUT = ChosenProduct(
    ProductShape(4, 2048, 2048, "residual"),
    ProductLaunch("ring", block_n=16, num_warps=4, on_an_sm=1, tiles=8),
)
BROKE = ArmFailure(type="BrokenArm", message="it is wrong", hint="", during="tuning")


def worker(task: ProductTask, on_event, silence_s) -> ProductResult:
    """Own kernels save a tenth."""
    assert task.bench.products == ()
    return ProductResult(
        sites=((OUT.shape, 16),),
        weight_bytes=2_000_000_000,
        library_us=1010.0,
        tried=(
            TriedProducts(products=(OUT,), fused=True, step_us=900.0),
            TriedProducts(products=(OUT,), fused=False, failure=BROKE),
        ),
        best=(OUT,),
        rounds_us=(900.0, 920.0, 880.0),
        library_rounds_us=(1000.0, 1000.0, 1000.0),
        untried=3,
        device={"name": "A GPU"},
    )


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch):
    monkeypatch.setattr(products_tuned, "has_gpu", lambda: True)
    monkeypatch.setattr(planning, "device_facts", lambda kind: GPU)
    monkeypatch.setattr(products_tuned, "run_task", worker)


def planned_with(products: str, *modes: Mode, batch: int = 4):
    """What a run of this model would be."""
    request = DecodeRequest(
        model=MODEL,
        protocol=preset("quick"),
        device="cuda",
        batch=batch,
        modes=modes,
        products=products,
    )
    return planned(request)


def test_what_was_faster_goes_to_the_table_and_from_there_to_every_worker(attnbench, tmp_path):
    path = tmp_path / "products.json"
    done = attnbench(*ARGUMENTS, "--out", str(path))
    assert done.code == 0
    (entry,) = read_products(path).entries
    assert entry.products == (OUT,)
    assert (entry.place.gpu, entry.place.batch, entry.place.layers) == ("A GPU", 4, 16)
    assert (entry.measured.step_us, entry.measured.library_us) == (900.0, 1000.0)
    plan = planned_with(str(path), Mode.COMPILED)
    bench = bench_of(plan, ())
    assert bench.products == (OUT,)
    assert "900 us against the library's 1000" in bench.products_source
    assert str(path) in bench.products_source
    assert bench_of(planned_with(str(path), Mode.GRAPH), ()).products == ()
    assert bench_of(planned_with(str(path), Mode.COMPILED, batch=2), ()).products == ()
    assert bench_of(planned_with("none", Mode.COMPILED), ()).products == ()


def test_a_person_reads_the_products_and_what_they_save(attnbench):
    done = attnbench(*ARGUMENTS)
    header, first, *rest = done.out.splitlines()
    assert header.split()[:4] == ["product", "rows", "columns", "depth"]
    assert first.split()[:5] == ["residual", "4", "2048", "2048", "16"]
    assert "block_n=16,num_warps=4" in first
    text = "\n".join(rest)
    assert "1000.0 µs a step by the library (2000 GB/s of weights), 2 tried, 3 left untried" in text
    assert "900.0 µs (2222 GB/s): 10.00 % less (8.00 to 12.00 % by round)" in text
    assert "failed: it is wrong" in text


def test_json_holds_the_summary_the_entry_and_the_raw_figures(attnbench):
    said = json.loads(attnbench(*ARGUMENTS, "--json").out)
    assert said["summary"]["saved_percent"] == pytest.approx(10.0)
    assert said["entry"]["place"]["architecture"] == "LlamaForCausalLM"
    assert said["raw"]["tried"][1]["failure"]["message"] == "it is wrong"


@pytest.mark.parametrize(
    "changes",
    [
        {"best": (), "rounds_us": (), "library_rounds_us": ()},
        {"rounds_us": (900.0, 1001.0, 880.0)},  # slower in one round
    ],
)
def test_what_is_not_faster_in_every_round_is_not_written(
    attnbench, monkeypatch, tmp_path, changes
):
    def slower(task, on_event, silence_s):
        return msgspec.structs.replace(worker(task, on_event, silence_s), **changes)

    monkeypatch.setattr(products_tuned, "run_task", slower)
    path = tmp_path / "products.json"
    done = attnbench(*ARGUMENTS, "--out", str(path))
    assert done.code == 0
    assert "The library's products stay" in done.out
    assert not path.exists()


def test_more_rows_than_own_kernels_take_are_refused(attnbench):
    done = attnbench("methods", "tune-products", "--model", MODEL, "--batch", "17")
    assert done.code == 1
    assert "at most 16 rows" in done.err


def test_a_table_that_is_none_is_refused_before_anything_is_measured(attnbench, tmp_path):
    path = tmp_path / "products.json"
    path.write_text("{")
    for arguments in (
        (*ARGUMENTS, "--out", str(path)),
        ("decode", "--model", MODEL, "--products", str(path), "--plan"),
    ):
        done = attnbench(*arguments)
        assert done.code == 2
        assert "no table of products" in done.err


def test_without_a_gpu_it_is_refused(attnbench, monkeypatch):
    monkeypatch.setattr(products_tuned, "has_gpu", lambda: False)
    done = attnbench(*ARGUMENTS)
    assert done.code == 1
    assert "tuned on a CUDA GPU" in done.err
