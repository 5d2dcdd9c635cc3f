"""A step is split into attention, other kernels and gaps, and the parts say how they were had."""

from __future__ import annotations

import pytest
from msgspec import UNSET

from attnbench.protocol.breakdown import (
    MOST_KERNELS,
    KernelSum,
    StepProfile,
    by_attention_alone,
    by_kernels,
)
from attnbench.protocol.cell import SessionSamples, Visit
from attnbench.protocol.result import How


def kernel(name: str, launches: int, us: float) -> KernelSum:
    return KernelSum(name=name, launches=launches, us=us)


def profile(*kernels: KernelSum, attention=(), busy_us: float | None = None) -> StepProfile:
    total = sum(each.us for each in kernels)
    return StepProfile(
        steps=10,
        busy_us=total if busy_us is None else busy_us,
        kernels=kernels,
        attention=attention,
    )


def session(*steps_us: float, arm: str = "a") -> SessionSamples:
    visit = Visit(arm=arm, group=0, block=0, position=0, steps_us=steps_us, wall_us=1.0, gpu={})
    return SessionSamples(
        session=0,
        seed=0,
        warmup_us={},
        visits=(visit,),
        bandwidth_gb_s=1.0,
        witness={},
        environment={},
    )


def test_kernels_that_attention_launches_alone_are_attention_and_gaps_are_what_is_left():
    flash, product = kernel("flash", 40, 4000.0), kernel("gemm", 70, 5000.0)
    found = by_kernels(profile(flash, product, attention=(flash,)), step_us=1000.0)
    assert found.how is How.KERNELS
    assert (found.attention_ms, found.other_ms) == pytest.approx((0.4, 0.5))
    assert found.gaps_ms == pytest.approx(0.1)
    assert [each.name for each in found.kernels] == ["gemm", "flash"]
    assert found.kernels[1].launches == 4


def test_a_kernel_of_both_is_attention_as_often_as_attention_launches_it():
    copies = kernel("copy", 40, 800.0)
    found = by_kernels(profile(copies, attention=(kernel("copy", 10, 1.0),)), step_us=80.0)
    assert found.attention_ms == pytest.approx(0.02)
    assert found.other_ms == pytest.approx(0.06)


def test_kernels_that_overlap_count_once():
    one, other = kernel("one", 10, 1000.0), kernel("other", 10, 1000.0)
    found = by_kernels(profile(one, other, attention=(one,), busy_us=1000.0), step_us=100.0)
    assert found.attention_ms + found.other_ms == pytest.approx(0.1)
    assert found.gaps_ms == 0


def test_kernels_that_the_profiler_stretched_beyond_the_step_leave_no_gap():
    found = by_kernels(profile(kernel("slow", 10, 2000.0)), step_us=150.0)
    assert (found.gaps_ms, found.other_ms) == (0, pytest.approx(0.2))


def test_only_the_longest_kernels_are_named_and_the_rest_is_counted():
    many = [kernel(f"k{i}", 10, 100.0 + i) for i in range(MOST_KERNELS + 3)]
    found = by_kernels(profile(*many), step_us=1e4)
    assert len(found.kernels) == MOST_KERNELS
    assert found.other_kernels == 3
    assert found.kernels[0].name == f"k{MOST_KERNELS + 2}"


def test_attention_alone_is_a_part_of_the_step_of_the_same_session():
    found = by_attention_alone(
        [(session(1000.0), (400.0, 400.0)), (session(2000.0), (820.0,))], "a", 0.95
    )
    assert found.how is How.ATTENTION_ALONE
    assert (found.step_ms, found.attention_ms) == (1.5, pytest.approx(0.61))
    assert found.gaps_ms is UNSET
    assert found.attention_share.low < 0.405 < found.attention_share.high


def test_of_one_session_the_share_has_no_interval_and_of_none_there_is_no_breakdown():
    assert by_attention_alone([(session(9.0), (1.0,))], "a", 0.95).attention_share is UNSET
    assert by_attention_alone([(session(9.0), ())], "a", 0.95) is None
    assert by_attention_alone([(session(9.0, arm="b"), (1.0,))], "a", 0.95) is None
