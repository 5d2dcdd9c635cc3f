"""Every kernel compiles for GPUs that are not here, within the shared memory that they have."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from attnbench.kernels.products import ring_launches
from attnbench.methods.split_kv import RING_CANDIDATES, RING_SHARED_BYTES, SHARED_BYTES
from tests.kernels import launches


@pytest.fixture(scope="module")
def compiled() -> list[dict]:
    """What `tests.kernels.launches` printed, from a process in which nothing is interpreted."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.kernels.launches"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_of_the_package_has_a_compile_case(compiled):
    entry_points = {row["entry_point"] for row in compiled if "entry_point" in row}
    assert entry_points >= {"split_decode_kernel", "int8_decode_kernel"}
    assert entry_points == {row["kernel"] for row in compiled if "kernel" in row}


DECODERS = {
    "split_decode_kernel",
    "int8_decode_kernel",
    "int4_decode_kernel",
    "fp8_decode_kernel",
    "coded_decode_kernel",
    "distance_decode_kernel",
    "kept_decode_kernel",
}
RINGS = {"ring_decode_kernel", "ring_product_kernel"}


def is_ring(row: dict) -> bool:
    """Whether this is a launch of a kernel that runs where there is a copy engine alone."""
    return row.get("kernel") in RINGS


def rings_of(compiled: list[dict], kernel: str) -> list[dict]:
    """Launches of one of them."""
    return [row for row in compiled if row.get("kernel") == kernel]


@pytest.mark.parametrize("capability", launches.CAPABILITIES)
def test_every_offered_default_fits_in_99_kib_on_every_capability(compiled, capability):
    rows = [row for row in compiled if row.get("capability") == capability and not is_ring(row)]
    entry_points = {r["entry_point"] for r in compiled if len(r) == 1}
    lacking = {name for name, least in launches.LEAST_CAPABILITY.items() if capability < least}
    assert {row["kernel"] for row in rows} == entry_points - RINGS - lacking
    assert {row["case"] for row in rows if row["shared_bytes"] > SHARED_BYTES} == set()


def test_what_needs_later_instructions_is_refused_by_the_compiler_of_earlier_gpus(compiled):
    refused = {row["refused"]: row for row in compiled if "refused" in row}
    assert set(refused) == set(launches.LEAST_CAPABILITY)
    for row in refused.values():
        assert row["refused_by"] < launches.LEAST_CAPABILITY[row["refused"]]
        assert "fp8e4nv not supported" in row["said"], row


def test_every_configuration_on_offer_fits_in_99_kib(compiled):
    rows = [row for row in compiled if "kernel" in row and not is_ring(row)]
    assert max(row["shared_bytes"] for row in rows) <= SHARED_BYTES
    assert len({row["config"] for row in rows if row["kernel"] == "split_decode_kernel"}) > 4
    assert len({row["config"] for row in rows if row["kernel"] == "int8_decode_kernel"}) > 4


def test_the_main_loop_copies_asynchronously_and_threads_meet_before_a_program_reports(compiled):
    for row in compiled:
        if row.get("kernel") in DECODERS:
            recurs = "tail=exact" in row["case"]  # it waits for itself, not for memory
            assert recurs or row["async_copies"] > 0, row
            assert row["barrier_before_ticket"], row


def test_kernels_over_full_sequences_copy_asynchronously_and_half_precision_spills_nothing(
    compiled,
):
    rows = [row for row in compiled if str(row.get("case")).startswith("full ")]
    assert len({row["case"] for row in rows}) == len(launches.BIASED)
    for row in rows:
        assert row["async_copies"] > 0, row
        assert not row["spilled"], row


def test_every_ring_fits_as_often_on_an_sm_as_it_is_meant_to(compiled):
    rows = rings_of(compiled, "ring_decode_kernel")
    assert len(rows) == len(launches.RING_CASES) * len(RING_CANDIDATES)
    for row, (_, _, _, on_an_sm) in zip(rows, RING_CANDIDATES * len(rows), strict=False):
        # An SM keeps 1 KiB of each program for itself.
        assert row["shared_bytes"] <= RING_SHARED_BYTES // on_an_sm - 1024, row
        assert not row["spilled"], row


def test_the_ring_asks_before_it_waits_and_lets_the_next_kernel_go(compiled):
    for row in rings_of(compiled, "ring_decode_kernel"):
        assert row["dependent_launch"], row
        assert row["waits"] == 2, row  # at once outside a graph; after the first tiles in one
        assert row["lets_go"] == 1, row
        assert row["bulk_copies"] > 0, row
        assert row["barrier_before_ticket"], row


def test_every_ring_of_products_fits_as_often_on_an_sm_as_it_is_meant_to(compiled):
    rows = rings_of(compiled, "ring_product_kernel")
    offered = [each for each in ring_launches(launches.PRODUCTS[0]) if not each.let_go]
    assert len(offered) > 6
    assert len(rows) == len(offered) + len(launches.PRODUCTS) - 1
    for row in rows:
        assert row["shared_bytes"] <= RING_SHARED_BYTES // row["on_an_sm"] - 1024, row
        assert not row["spilled"], row


def test_a_ring_of_products_asks_then_waits_then_lets_the_next_kernel_go(compiled):
    for row in rings_of(compiled, "ring_product_kernel"):
        assert row["dependent_launch"], row
        assert row["waits"] == 2, row  # at once outside a graph; after the first tiles in one
        assert row["lets_go"] == 1, row
        assert row["bulk_copies"] > 0, row


def test_products_copy_asynchronously_without_spilling_and_wait_only_as_dependents(compiled):
    rows = [row for row in compiled if row.get("kernel") == "skinny_product_kernel"]
    assert len({row["config"] for row in rows}) > 4
    for row in rows:
        assert row["async_copies"] > 0, row
        assert not row["spilled"], row
        assert row["waits"] == ("dependent" in row["case"]), row
