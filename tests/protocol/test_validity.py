"""What voids a comparison, one disturbance at a time, and what does not."""

import msgspec
import pytest

from attnbench.protocol.blocks import latency_ms, log_ratios, placed_visits, session_blocks
from attnbench.protocol.validity import ByteFloor, floor_ms
from attnbench.protocol.verdict import Reason, Verdict
from tests.calibration.simulated_gpu import BANDWIDTH_GB_S, SimulatedArm, SimulatedGpu
from tests.protocol.samples import QUIET, decided, sessions_of, slowed, with_gpu, with_visits

ARM_US = 800.0


@pytest.fixture(name="sessions", scope="module")
def _sessions():
    gpu = SimulatedGpu(
        step_sd=QUIET.step_sd,
        placement_sd=QUIET.placement_sd,
        capture_sd=QUIET.capture_sd,
        gpu={
            "sm_clock_mhz": 1980,
            "throttle_reasons": 0,
            "other_processes": 0,
            "ecc_uncorrected": 0,
        },
    )
    return sessions_of({"c": ARM_US, "d": 900.0}, gpu=gpu)


def first_visit_of(sessions, arm="c"):
    return next(visit for visit in sessions[1].visits if visit.arm == arm)


def with_one(sessions, change, arm="c"):
    """One visit of one arm in the second session changed."""
    chosen = first_visit_of(sessions, arm)
    return with_visits(
        sessions, lambda s, visit: change(visit) if s == 1 and visit == chosen else visit
    )


def assert_void(found, reason):
    assert (found.verdict, found.reason, found.equivalent) == (Verdict.VOID, reason, False)
    assert found.next_step


def test_undisturbed_sessions_are_not_void(sessions):
    assert decided(sessions).verdict is Verdict.FASTER


@pytest.mark.parametrize("bits", [0x4, 0x8, 0x20, 0x40, 0x80, 0x41])
@pytest.mark.parametrize("key", ["throttle_reasons", "before_throttle_reasons"])
def test_one_throttle_bit_voids(sessions, bits, key):
    disturbed = with_one(sessions, lambda visit: with_gpu(visit, **{key: bits}))
    assert_void(decided(disturbed), Reason.THROTTLED)


@pytest.mark.parametrize(
    ("counter", "what"), [("power_throttled_ns", "power"), ("heat_throttled_ns", "heat")]
)
def test_a_clock_that_was_held_down_between_two_readings_voids(sessions, counter, what):
    readings = {f"before_{counter}": 5_000_000, counter: 8_500_000}
    found = decided(with_one(sessions, lambda visit: with_gpu(visit, **readings)))
    assert_void(found, Reason.THROTTLED)
    assert f"held down by {what} for 3.5 ms" in found.next_step


def test_a_counter_that_rose_before_the_visits_or_is_known_once_voids_nothing(sessions):
    before = {"before_power_throttled_ns": 9, "power_throttled_ns": 9, "heat_throttled_ns": 4}
    disturbed = with_one(sessions, lambda visit: with_gpu(visit, **before))
    assert decided(disturbed).verdict is Verdict.FASTER


@pytest.mark.parametrize("bits", [0x1, 0x2, 0x10, 0x100])
def test_idle_and_chosen_clocks_are_no_throttling(sessions, bits):
    disturbed = with_one(sessions, lambda visit: with_gpu(visit, throttle_reasons=bits))
    assert decided(disturbed).verdict is Verdict.FASTER


def test_another_process_on_the_gpu_voids_even_beside_another_arm(sessions):
    disturbed = with_one(sessions, lambda visit: with_gpu(visit, other_processes=1), arm="d")
    assert_void(decided(disturbed), Reason.OTHER_PROCESS)


def test_a_memory_error_voids_and_old_ones_do_not(sessions):
    old = with_visits(sessions, lambda _, visit: with_gpu(visit, ecc_uncorrected=3))
    assert decided(old).verdict is Verdict.FASTER
    new = with_one(old, lambda visit: with_gpu(visit, ecc_uncorrected=4))
    assert_void(decided(new), Reason.ECC)


def test_a_clock_off_its_median_drops_the_block_for_all_arms_compared(sessions):
    disturbed = with_one(
        sessions, lambda visit: slowed(with_gpu(visit, sm_clock_mhz=1900), 1.5), arm="a2"
    )
    found = decided(disturbed)
    assert (found.verdict, found.blocks_used, found.blocks_dropped) == (Verdict.FASTER, 35, 1)
    assert found.aa.high < 1.01


def test_a_clock_within_two_percent_drops_nothing(sessions):
    disturbed = with_one(sessions, lambda visit: with_gpu(visit, sm_clock_mhz=1945))
    assert decided(disturbed).blocks_dropped == 0


def test_each_arm_has_a_median_clock_of_its_own(sessions):
    slower = with_visits(
        sessions, lambda _, v: with_gpu(v, sm_clock_mhz=1700) if v.arm == "c" else v
    )
    assert decided(slower).blocks_dropped == 0


@pytest.mark.parametrize(("blocks", "void"), [(1, False), (2, True)])
def test_more_than_a_tenth_of_blocks_dropped_voids(sessions, blocks, void):
    disturbed = with_visits(
        sessions,
        lambda _, v: with_gpu(v, sm_clock_mhz=1500) if v.arm == "c" and v.block < blocks else v,
    )
    found = decided(disturbed)
    assert found.blocks_dropped == 3 * blocks
    assert (found.reason is Reason.CLOCK_UNSTEADY) == void


def test_missing_visits_drop_blocks_and_void_when_they_are_many(sessions):
    few = with_visits(sessions, lambda _, v: None if v.arm == "c" and v.block == 0 else v)
    assert decided(few).blocks_dropped == 3
    many = with_visits(sessions, lambda _, v: None if v.arm == "c" and v.block < 2 else v)
    assert_void(decided(many), Reason.BLOCKS_MISSING)


@pytest.mark.parametrize("arm", ["c", "a", "a2"])
def test_an_arm_without_a_visit_in_one_session_voids(sessions, arm):
    disturbed = with_visits(sessions, lambda s, v: None if v.arm == arm and s == 2 else v)
    assert_void(decided(disturbed), Reason.NOT_MEASURED)


def test_an_arm_that_failed_elsewhere_costs_the_others_nothing(sessions):
    disturbed = with_visits(sessions, lambda s, v: None if v.arm == "d" and s == 2 else v)
    found = decided(disturbed, exact_arms=("a", "d"))
    assert (found.verdict, found.blocks_dropped) == (Verdict.FASTER, 0)


def test_an_arm_that_was_never_visited_has_no_latency(sessions):
    found = decided(sessions, "nobody")
    assert_void(found, Reason.NOT_MEASURED)
    assert found.latency_ms is msgspec.UNSET
    assert latency_ms(sessions, "nobody") == {}


def test_steps_that_took_no_time_drop_their_block(sessions):
    disturbed = with_one(sessions, lambda visit: slowed(visit, 0.0))
    assert decided(disturbed).blocks_dropped == 1


@pytest.mark.parametrize("arm", ["c", "a", "a2"])
def test_a_slope_at_the_end_of_warm_up_voids(sessions, arm):
    cooling = tuple(2000.0 - 20.0 * step for step in range(50))
    disturbed = [
        msgspec.structs.replace(session, warmup_us=session.warmup_us | {arm: cooling})
        for session in sessions
    ]
    assert_void(decided(disturbed), Reason.NOT_WARM)


def test_an_arm_without_warm_up_voids(sessions):
    disturbed = [msgspec.structs.replace(session, warmup_us={}) for session in sessions]
    assert_void(decided(disturbed), Reason.NOT_WARM)


@pytest.mark.parametrize("arm", ["c", "a", "a2"])
def test_an_allocator_that_starts_over_in_a_visit_voids(sessions, arm):
    old = with_visits(sessions, lambda _, v: with_gpu(v, before_alloc_retries=2, alloc_retries=2))
    assert decided(old).verdict is Verdict.FASTER
    found = decided(with_one(old, lambda v: with_gpu(v, alloc_retries=3), arm))
    assert_void(found, Reason.ALLOCATOR_RETRY)
    assert f"1 in a visit of {arm}" in found.next_step


@pytest.mark.parametrize("known", [{"alloc_retries": 7}, {"before_alloc_retries": 7}])
def test_retries_of_which_only_one_reading_is_known_void_nothing(sessions, known):
    assert decided(with_one(sessions, lambda v: with_gpu(v, **known))).verdict is Verdict.FASTER


def test_a_count_of_retries_that_somebody_set_back_voids_nothing(sessions):
    reset = with_one(sessions, lambda v: with_gpu(v, before_alloc_retries=7, alloc_retries=0))
    assert decided(reset).verdict is Verdict.FASTER


def test_a_retry_between_visits_or_of_an_arm_not_compared_voids_nothing(sessions):
    between = with_visits(
        sessions,
        lambda _, v: with_gpu(v, before_alloc_retries=v.block, alloc_retries=v.block),
    )
    assert decided(between).verdict is Verdict.FASTER
    other = with_one(between, lambda v: with_gpu(v, alloc_retries=99), arm="d")
    assert decided(other).verdict is Verdict.FASTER


def with_kernels(sessions, *by_session):
    return [
        msgspec.structs.replace(session, kernels=kernels)
        for session, kernels in zip(sessions, by_session, strict=True)
    ]


LISTS = {arm: ("append", f"decode of {arm}") for arm in ("a", "a2", "c", "d")}


@pytest.mark.parametrize("arm", ["c", "a", "a2"])
@pytest.mark.parametrize(
    "other",
    [("append", "another"), ("append",), ("append", "decode", "merge"), ("decode", "append")],
)
def test_a_kernel_list_that_differs_between_sessions_voids(sessions, arm, other):
    found = decided(with_kernels(sessions, LISTS, LISTS, LISTS | {arm: other}))
    assert_void(found, Reason.KERNEL_LIST)
    assert f"{arm} launched other kernels in session 2" in found.next_step


def test_kernel_lists_that_stay_or_are_unknown_or_not_compared_void_nothing(sessions):
    assert decided(with_kernels(sessions, LISTS, LISTS, LISTS)).verdict is Verdict.FASTER
    unknown = with_kernels(sessions, LISTS, {}, LISTS | {"c": ()})
    assert decided(unknown).verdict is Verdict.FASTER
    elsewhere = with_kernels(sessions, LISTS, LISTS, LISTS | {"d": ("another",)})
    assert decided(elsewhere).verdict is Verdict.FASTER


def test_lists_known_in_two_sessions_of_three_are_compared(sessions):
    found = decided(with_kernels(sessions, {}, LISTS, LISTS | {"c": ("another",)}))
    assert_void(found, Reason.KERNEL_LIST)
    assert "another for append" in found.next_step


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_host_and_device_clocks_that_disagree_in_every_visit_void(sessions, share):
    disturbed = with_visits(
        sessions,
        lambda _, v: msgspec.structs.replace(v, wall_us=v.wall_us * share) if v.arm == "c" else v,
    )
    assert_void(decided(disturbed), Reason.TIMERS_DISAGREE)


def test_one_late_wake_up_of_the_host_voids_nothing(sessions):
    disturbed = with_one(sessions, lambda v: msgspec.structs.replace(v, wall_us=v.wall_us + 5e4))
    assert decided(disturbed).verdict is Verdict.FASTER


FLOOR_BYTES = int(ARM_US * 1e-6 * BANDWIDTH_GB_S * 1e9)  # what takes the arm's very time to read


@pytest.mark.parametrize(
    ("read_bytes", "l2_bytes", "void"),
    [
        (int(FLOOR_BYTES * 0.9), 0, False),
        (FLOOR_BYTES, 0, False),  # at the bandwidth itself, which is known to 2 %
        (int(FLOOR_BYTES * 1.1), 0, True),
        (int(FLOOR_BYTES * 1.1), FLOOR_BYTES * 2, False),  # all of it may stay in L2
        (int(FLOOR_BYTES * 1.1), int(FLOOR_BYTES * 0.2), False),  # enough of it may
    ],
)
def test_a_time_below_the_byte_floor_voids(sessions, read_bytes, l2_bytes, void):
    floor = ByteFloor(read_bytes=read_bytes, l2_bytes=l2_bytes)
    found = decided(sessions, floor=floor)
    assert (found.reason is Reason.BELOW_FLOOR) == void
    assert (found.verdict is Verdict.VOID) == void


def test_the_floor_is_bytes_over_bandwidth():
    assert floor_ms(ByteFloor(read_bytes=2_040_000_000, l2_bytes=0), 2000.0) == pytest.approx(1.0)


def test_what_is_void_is_not_equivalent_either():
    sessions = with_visits(
        sessions_of({"c": 1000.0}), lambda _, visit: with_gpu(visit, throttle_reasons=0x8)
    )
    assert_void(decided(sessions), Reason.THROTTLED)


def test_the_first_visit_after_a_capture_follows_nobody(sessions):
    blocks = session_blocks(sessions[0], ("a", "a2", "c", "d"))
    placed = placed_visits(sessions[0], blocks.kept)
    firsts = {(visit.block, visit.position) for visit in placed if not visit.follows}
    assert firsts == {(0, 0), (3, 0), (6, 0), (9, 0)}
    assert [v.follows for v in placed[1:4]] == [v.arm for v in placed[:3]]


def test_void_figures_stay_in_the_table(sessions):
    found = decided(with_one(sessions, lambda visit: with_gpu(visit, other_processes=1)))
    assert found.ratio.estimate == pytest.approx(1.25, rel=0.01)


def test_block_values_are_log_ratios_of_mean_steps_by_group():
    sessions = sessions_of(
        {"c": SimulatedArm(500.0)},
        gpu=SimulatedGpu(step_sd=0.0, placement_sd=0.0, capture_sd=0.0, session_sd=0.0, drift=0.0),
    )
    groups = log_ratios(session_blocks(sessions[0], ("a", "c")).kept, "a", "c")
    assert [len(group) for group in groups] == [3, 3, 3, 3]
    assert [v for group in groups for v in group] == pytest.approx([0.6931472] * 12)
