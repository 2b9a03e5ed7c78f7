"""Raw counters to joules, joules to watts, meters to the node's sum. Pure, so mostly properties."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from trees import add_up

from powerbench_agent.agent.node import NODE_ENERGY, NODE_POWER, Node
from powerbench_agent.core.counters import PLAUSIBLE_WATTS, Counter, Rate
from powerbench_agent.core.model import ESTIMATE, Meter, Reading

RANGE_UJ = 262_143_328_850  # what a server's package zone says in max_energy_range_uj


def advanced(counter: Counter, *readings: tuple[int, float]) -> float:
    joules = counter.joules
    for energy_uj, now in readings:
        joules = counter.advance(energy_uj, now)
    return joules


# -- Counter -----------------------------------------------------------------------------------------


def test_a_counter_starts_at_zero_whatever_the_raw_value() -> None:
    """The first reading is a start, not energy."""
    counter = Counter(RANGE_UJ)
    assert counter.advance(123_456_789, 5.0) == 0
    assert (counter.wraps, counter.resets) == (0, 0)


def test_a_counter_adds_what_the_raw_one_gained() -> None:
    """Microjoules in, joules out."""
    assert advanced(Counter(RANGE_UJ), (1_000_000, 0), (51_000_000, 1), (51_500_000, 2)) == 50.5


def test_an_equal_reading_is_an_equal_reading() -> None:
    """A counter that stands still has neither wrapped nor been reset."""
    counter = Counter(RANGE_UJ)
    assert advanced(counter, (7, 0), (7, 0), (7, 1), (7, 1e6)) == 0
    assert (counter.wraps, counter.resets) == (0, 0)


def test_a_plausible_decrease_is_a_wrap() -> None:
    """A decrease that implies few watts adds what lies across the wrap."""
    counter = Counter(RANGE_UJ)
    assert advanced(counter, (RANGE_UJ - 30_000_000, 0), (20_000_000, 1)) == pytest.approx(50)
    assert (counter.wraps, counter.resets) == (1, 0)


def test_an_implausible_decrease_is_a_reset() -> None:
    """A decrease that would mean 260 kW adds nothing, and what follows counts from there."""
    counter = Counter(RANGE_UJ)
    assert advanced(counter, (2_000_000_000, 0), (5_000_000, 1)) == 0
    assert (counter.wraps, counter.resets) == (0, 1)
    assert counter.advance(15_000_000, 2) == 10


def test_without_a_range_every_decrease_is_a_reset() -> None:
    """Where the largest value is unknown no wrap can be told."""
    counter = Counter(None)
    assert advanced(counter, (RANGE_UJ - 1, 0), (1, 1), (3_000_001, 2)) == 3
    assert (counter.wraps, counter.resets) == (0, 1)


def test_a_sentinel_adds_nothing_on_its_way_up_nor_down() -> None:
    """A jump to a huge value and back is two leaps; what was used between the good readings is there."""
    counter = Counter(RANGE_UJ)
    readings = (90_000_000_000, 0), (250_000_000_000, 1), (90_060_000_000, 2), (90_061_000_000, 3)
    assert advanced(counter, *readings) == 61
    assert (counter.wraps, counter.resets) == (0, 2)


def test_all_ones_is_no_wrap_on_its_way_back() -> None:
    """A register read as all ones, so the range itself, while the counter is young: no energy, no wrap."""
    counter = Counter(RANGE_UJ)
    readings = (900_000_000, 0), (RANGE_UJ, 1), (960_000_000, 2), (961_000_000, 3)
    assert advanced(counter, *readings) == 61
    assert (counter.wraps, counter.resets) == (0, 2)


def test_a_parts_own_limit_narrows_what_passes_for_a_wrap() -> None:
    """With most_watts a slow poll's reset is not a wrap, and a rise has the same bound."""
    counter = Counter(RANGE_UJ)
    counter.most_watts = 100.0
    assert advanced(counter, (200_000_000_000, 0), (60_000_000_000, 200)) == 0
    assert (counter.wraps, counter.resets) == (0, 1)
    assert counter.advance(60_050_000_000, 201) == 50
    assert counter.advance(61_050_000_000, 202) == 50


def test_a_poll_after_a_long_sleep_is_held_to_the_time_that_passed() -> None:
    """The bound grows with the time between two readings: an hour at 100 W is plausible."""
    assert advanced(Counter(None), (0, 0), (360_000_000_000, 3600)) == 360_000


@given(st.lists(st.tuples(st.integers(), st.floats(allow_nan=False, allow_infinity=False)), max_size=50))
@example([(0, 0.0), (2**80, 0.0), (-(2**80), -1e300), (5, 1e300)])
def test_a_counter_never_decreases(readings: list[tuple[int, float]]) -> None:
    """Any sequence of readings at all, time running backwards among them: joules, wraps, resets only rise."""
    for range_uj in (RANGE_UJ, None):
        counter = Counter(range_uj)
        before = (0.0, 0, 0)
        for energy_uj, now in readings:
            joules = counter.advance(energy_uj, now)
            after = (joules, counter.wraps, counter.resets)
            assert all(new >= old for new, old in zip(after, before, strict=True))
            before = after


@given(
    unit_uj=st.sampled_from([1, 15, 61]),
    start=st.integers(0, 2**32 - 1),
    steps=st.lists(
        st.tuples(st.floats(0.001, 60), st.floats(0, 1)),
        max_size=60,
    ),
)
@example(unit_uj=1, start=2**32 - 1, steps=[(2.0, 1.0)] * 20)
def test_joules_are_the_truth_within_one_unit_a_wrap(
    unit_uj: int, start: int, steps: list[tuple[float, float]]
) -> None:
    """Any power below the bound, polled so that no wrap goes unseen: the joules are what was used.

    The kernel's range is one unit short of the modulus, hence one unit a wrap.
    """
    modulus = 2**32
    counter = Counter((modulus - 1) * unit_uj)
    units, now, true_wraps = start, 0.0, 0
    counter.advance(units % modulus * unit_uj, now)
    for seconds, load in steps:
        gained = int(seconds * load * PLAUSIBLE_WATTS * 1e6 / unit_uj)
        gained = min(gained, modulus // 3)  # near a whole range a step there could be a step back
        true_wraps += (units + gained) // modulus - units // modulus
        units += gained
        now += seconds
        counter.advance(units % modulus * unit_uj, now)
    for _ in range(4):  # a last step that is in doubt is confirmed by what follows
        now += 1.0
        counter.advance(units % modulus * unit_uj, now)
    truth = (units - start) * unit_uj / 1e6
    assert (counter.wraps, counter.resets) == (true_wraps, 0)
    assert abs(counter.joules - truth) <= true_wraps * unit_uj / 1e6 + 1e-6


@given(
    st.lists(
        st.tuples(st.floats(0.01, 10), st.floats(0, PLAUSIBLE_WATTS), st.none() | st.floats(0, 1)),
        max_size=60,
    )
)
def test_a_reset_invents_no_joule(steps: list[tuple[float, float, float | None]]) -> None:
    """A counter that starts again at 0 at any moment between two polls: never more joules than were used."""
    counter = Counter(RANGE_UJ)
    counter.advance(0, 0)
    raw_uj, now, used, resets = 0, 0.0, 0.0, 0
    for seconds, watts, reset in steps:
        gained_uj = int(seconds * watts * 1e6)
        raw_uj = raw_uj + gained_uj if reset is None else int(gained_uj * (1 - reset))
        assume(raw_uj < RANGE_UJ // 2)  # far from a wrap, which such a reset could pass for
        resets += reset is not None
        now += seconds
        used += seconds * watts
        assert counter.advance(raw_uj, now) <= used + 1e-3
    assert counter.wraps == 0
    assert counter.resets <= 2 * resets  # a reset to just below the counter looks like a glitch


# -- Rate --------------------------------------------------------------------------------------------


def test_a_rate_is_the_mean_between_two_beats() -> None:
    """No watts before the second beat; then joules by seconds of the last window alone; at rest 0."""
    rate = Rate()
    rate.beat(100, 10)
    assert rate.watts is None
    rate.beat(150, 12)
    assert rate.watts == 25
    rate.beat(160, 13)
    assert rate.watts == 10
    for second in range(14, 19):
        rate.beat(160, second)
    assert rate.watts == 0


def test_two_beats_at_one_moment_keep_the_last_mean() -> None:
    """A window of no length has no mean."""
    rate = Rate()
    rate.beat(0, 1)
    rate.beat(10, 2)
    rate.beat(12, 2)
    assert rate.watts == 10


@pytest.mark.parametrize("period", [0.9, 1.0, 1.04, 1.7, 3.0])
def test_a_counter_that_moves_in_large_steps_has_the_mean_of_whole_steps(period: float) -> None:
    """A virtual machine's counter that is seldom written: no beat at 0 W, none far from the truth."""
    rate = Rate(at_rest=None)
    watts = []
    for second in range(60):
        now = second + 0.02 * (second % 3)
        rate.beat(100 * period * (now // period), now)
        watts.append(rate.watts)
    settled = [power for power in watts[30:] if power is not None]
    assert len(settled) == 30
    assert all(60 < power < 190 for power in settled)
    assert min(power for power in watts if power is not None) > 0


def test_a_counter_at_rest_is_unknown_where_nothing_rests() -> None:
    """A package always draws power: when its counter stands still, its power is unknown and not 0."""
    rate = Rate(at_rest=None)
    for second, joules in enumerate((0, 50, 100, 100, 100, 100, 100, 100)):
        rate.beat(joules, second)
    assert rate.watts is None


def test_a_rate_follows_a_counter_over_doubt_and_reset() -> None:
    """In doubt there is no power, then the mean over both beats; a reset opens a new window."""
    counter, rate = Counter(RANGE_UJ), Rate()
    found = []
    for second, joules in enumerate((5000, 5006, 5012, 5292, 5572, 10, 16, 22)):
        counter.advance(joules * 1_000_000, second)
        rate.follow(counter, second)
        found.append(rate.watts)
    assert found == [None, 6, 6, None, 280, None, None, 6]


# -- Node --------------------------------------------------------------------------------------------


def metered(taken: float, *meters: tuple[str, str, str, float]) -> Reading:
    return Reading([], [Meter(*meter) for meter in meters], taken)


def energy(reading: Reading) -> dict[tuple[str, ...], float]:
    return {s.labels: s.value for s in reading.samples if s.metric is NODE_ENERGY}


def power(reading: Reading) -> dict[tuple[str, ...], float]:
    return {s.labels: s.value for s in reading.samples if s.metric is NODE_POWER}


def test_the_node_adds_meters_up_by_component_and_source() -> None:
    """Two sockets are one cpu figure; dram and gpu stand beside it under their own source."""
    node = Node()
    add_up(node, [metered(1, ("cpu", "rapl", "0", 0), ("cpu", "rapl", "1", 0), ("dram", "rapl", "0:0", 0))])
    found = add_up(
        node,
        [
            metered(3, ("cpu", "rapl", "0", 100), ("cpu", "rapl", "1", 60), ("dram", "rapl", "0:0", 10)),
            metered(3, ("gpu", "nvml", "GPU-1", 500)),
        ],
    )
    assert energy(found) == {("cpu", "rapl"): 160, ("dram", "rapl"): 10, ("gpu", "nvml"): 500}
    assert power(found) == {("cpu", "rapl"): 80, ("dram", "rapl"): 5}


def test_a_node_without_meters_has_no_samples() -> None:
    """A machine that meters nothing shows nothing, not zero."""
    assert add_up(Node(), [Reading([])]).samples == []


def test_an_estimate_counts_where_nothing_measures() -> None:
    """Without a measured source the estimate is the component's figure, under its own name."""
    node = Node()
    add_up(node, [metered(1, ("cpu", ESTIMATE, "cpu", 0))])
    assert energy(add_up(node, [metered(2, ("cpu", ESTIMATE, "cpu", 30))])) == {("cpu", ESTIMATE): 30}


def test_an_estimate_is_never_added_to_a_measured_component() -> None:
    """While something measures the cpu, its estimate is not part of the node; that of the gpu still is."""
    node = Node()
    for second in range(3):
        found = add_up(
            node,
            [
                metered(second, ("cpu", "rapl", "0", 100.0 * second)),
                metered(
                    second, ("cpu", ESTIMATE, "cpu", 77.0 * second), ("gpu", ESTIMATE, "gpu", 5.0 * second)
                ),
            ],
        )
    assert energy(found) == {("cpu", "rapl"): 200, ("gpu", ESTIMATE): 10}


def test_a_measured_component_that_is_down_shows_a_gap_and_no_estimate() -> None:
    """A source that fails for a beat leaves a gap; its energy arrives with its next reading."""
    node = Node()
    add_up(node, [metered(0, ("cpu", "rapl", "0", 0)), metered(0, ("cpu", ESTIMATE, "cpu", 0))], {"cpu"})
    add_up(node, [metered(1, ("cpu", "rapl", "0", 50)), metered(1, ("cpu", ESTIMATE, "cpu", 30))], {"cpu"})
    gap = add_up(node, [metered(2, ("cpu", ESTIMATE, "cpu", 60))], {"cpu"})
    assert gap.samples == []
    back = add_up(
        node, [metered(3, ("cpu", "rapl", "0", 150)), metered(3, ("cpu", ESTIMATE, "cpu", 90))], {"cpu"}
    )
    assert energy(back) == {("cpu", "rapl"): 150}
    assert power(back) == {}  # a mean over the gap would be none of the last beat
    on = add_up(node, [metered(4, ("cpu", "rapl", "0", 200))], {"cpu"})
    assert power(on) == {("cpu", "rapl"): 50}


def test_an_estimate_that_takes_over_starts_from_that_moment() -> None:
    """When the measured source has gone, the estimate adds what it gains from then on."""
    node = Node()
    for second in range(5):
        add_up(
            node,
            [
                metered(second, ("cpu", "rapl", "0", 100.0 * second)),
                metered(second, ("cpu", ESTIMATE, "cpu", 60.0 * second)),
            ],
        )
    assert energy(add_up(node, [metered(5, ("cpu", ESTIMATE, "cpu", 300))])) == {("cpu", ESTIMATE): 60}


def test_a_reopened_meter_adds_to_the_nodes_counter() -> None:
    """A meter that starts at 0 again never takes the node's counter back."""
    node = Node()
    add_up(node, [metered(1, ("cpu", "rapl", "0", 0))])
    add_up(node, [metered(2, ("cpu", "rapl", "0", 900))])
    found = add_up(node, [metered(3, ("cpu", "rapl", "0", 20))])
    assert energy(found) == {("cpu", "rapl"): 920}
    assert power(found) == {("cpu", "rapl"): 20}


def test_a_meter_that_was_not_read_again_keeps_the_last_power() -> None:
    """A slow collector's power is its own window's mean, not 0 in the beats between."""
    node = Node()
    add_up(node, [metered(0, ("gpu", "slow", "0", 0))])
    add_up(node, [metered(5, ("gpu", "slow", "0", 500))])
    again = add_up(node, [metered(5, ("gpu", "slow", "0", 500))])
    assert (energy(again), power(again)) == ({("gpu", "slow"): 500}, {("gpu", "slow"): 100})


def test_a_vanished_meter_takes_its_power_along() -> None:
    """A component that comes back has no power before it has a window of its own."""
    node = Node()
    add_up(node, [metered(0, ("gpu", "nvml", "a", 0))])
    add_up(node, [metered(1, ("gpu", "nvml", "a", 100))])
    add_up(node, [])
    found = add_up(node, [metered(9, ("gpu", "nvml", "b", 7))])
    assert (energy(found), power(found)) == ({("gpu", "nvml"): 107}, {})


def test_a_meter_whose_power_is_unknown_is_a_gap_of_its_component() -> None:
    """Over a reset the energy is unknown: no power, neither 0 W nor that of the other socket alone."""
    node = Node()
    found = []
    for second, watts in enumerate((60.0, 60.0, None, 60.0)):
        meters = [Meter("cpu", "rapl", key, 60.0 * second) for key in ("0", "1")]
        reading = add_up(node, [Reading([], meters, second, powers={meters[1]: watts})])
        found.append(power(reading).get(("cpu", "rapl")))
    assert found == [None, 120, None, 120]
    assert energy(reading) == {("cpu", "rapl"): 360}


def test_no_mean_power_over_a_suspend() -> None:
    """Energy that a counter gained while the machine slept is counted, and is no power of the last second."""
    node = Node()
    found = []
    for second, joules in enumerate((0.0, 6.0, 12.0, 462.0, 468.0)):
        node.asleep = 600.0 if second >= 3 else 0.0
        found.append(power(add_up(node, [metered(second, ("cpu", "rapl", "0", joules))])))
    assert found == [{}, {("cpu", "rapl"): 6}, {("cpu", "rapl"): 6}, {}, {("cpu", "rapl"): 6}]


KEYS = [("cpu", "rapl", "0"), ("cpu", "rapl", "1"), ("dram", "rapl", "0:0"), ("gpu", "nvml", "a")]
GAINS = st.lists(st.fixed_dictionaries({}, optional={key: st.floats(0, 1e6) for key in KEYS}), max_size=30)


@given(GAINS)
def test_the_nodes_sum_equals_its_meters(beats: list[dict[tuple[str, str, str], float]]) -> None:
    """Meters may be missing at any beat: the node has what its present parts' meters say."""
    node = Node()
    joules = dict.fromkeys(KEYS, 0.0)
    seen: dict[tuple[str, str, str], float] = {}
    for second, gains in enumerate(beats):
        for key, gain in gains.items():
            joules[key] += gain
            seen[key] = joules[key]
        found = energy(add_up(node, [metered(second, *((*key, joules[key]) for key in gains))]))
        assert found.keys() == {key[:2] for key in gains}
        for part, figure in found.items():
            assert figure == pytest.approx(sum(v for key, v in seen.items() if key[:2] == part))


@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from([*KEYS, ("cpu", ESTIMATE, "cpu")]), st.floats(0, 1e9)),
            st.sets(st.sampled_from(["cpu", "dram", "gpu"])),
        ),
        max_size=30,
    )
)
def test_the_nodes_counters_never_decrease(
    beats: list[tuple[dict[tuple[str, str, str], float], set[str]]],
) -> None:
    """Any meters in any order, coming, going, restarting: no counter falls, no power is negative."""
    node = Node()
    highest: dict[tuple[str, ...], float] = {}
    for second, (meters, measured) in enumerate(beats):
        found = add_up(node, [metered(second, *((*key, figure) for key, figure in meters.items()))], measured)
        for part, figure in energy(found).items():
            assert figure >= highest.get(part, 0.0)
            highest[part] = figure
        assert all(watts >= 0 for watts in power(found).values())
