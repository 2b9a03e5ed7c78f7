"""The estimate: a linear model of time and busy time, and which watts it takes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trees import FakeClock, Procfs, value, values

from powerbench_agent.collectors import estimate
from powerbench_agent.core.host import Host
from powerbench_agent.core.model import Absent, ReadFailed, Reading, Reconfigures, Refreshes

if TYPE_CHECKING:
    from pathlib import Path

HERTZ = os.sysconf("SC_CLK_TCK")
CPUS = 2
OPTIONS = estimate.Options(idle_watts_per_cpu=1.0, max_watts_per_cpu=5.0)


class Machine(NamedTuple):
    procfs: Procfs
    clock: FakeClock
    host: Host

    async def open(self, options: estimate.Options = OPTIONS) -> estimate.Estimate:
        return await estimate.open_collector(options, self.host)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    clock = FakeClock()
    return Machine(Procfs(tmp_path / "proc", CPUS), clock, Host(procfs=tmp_path / "proc", clock=clock))


def joules(reading: Reading) -> float:
    return value(reading, estimate.ENERGY, "cpu")


async def spend(machine: Machine, busy: float, options: estimate.Options = OPTIONS) -> Reading:
    """Return the second reading of 10 s in which this share of the CPUs was busy."""
    collector = await machine.open(options)
    await collector.read()
    machine.clock.advance(10.0)
    machine.procfs.set_ticks(user=round(10 * CPUS * busy * HERTZ), idle=round(10 * CPUS * (1 - busy) * HERTZ))
    return await collector.read()


@pytest.mark.parametrize(("busy", "watts"), [(0.0, 2.0), (1.0, 10.0), (0.5, 6.0)])
async def test_watts_by_utilisation(machine: Machine, busy: float, watts: float) -> None:
    """An idle machine takes idle watts a CPU, a busy one the maximum, between them a straight line."""
    reading = await spend(machine, busy)
    assert value(reading, estimate.POWER, "cpu") == pytest.approx(watts)
    assert joules(reading) == pytest.approx(10 * watts)


async def test_everything_says_estimate(machine: Machine) -> None:
    """Every sample's name and the meter's source say that it is an estimate."""
    reading = await spend(machine, 0.5)
    assert all(sample.metric.name.startswith("estimate_") for sample in reading.samples)
    (meter,) = reading.meters
    assert (meter.component, meter.source) == ("cpu", "estimate")
    assert meter.joules == joules(reading)


async def test_starts_at_zero(machine: Machine) -> None:
    """The first reading has no energy and no power, however long the machine has been up."""
    machine.procfs.set_ticks(user=10**9)
    reading = await (await machine.open()).read()
    assert joules(reading) == 0
    assert values(reading, estimate.POWER) == {}


@pytest.mark.parametrize(
    ("ticks", "busy"),
    [
        ({"user": 1}, True),
        ({"nice": 1}, True),
        ({"system": 1}, True),
        ({"idle": 1}, False),
        ({"rest": (1, 0, 0, 0, 0, 0)}, False),  # iowait
        ({"rest": (0, 1, 0, 0, 0, 0)}, True),  # irq
        ({"rest": (0, 0, 1, 0, 0, 0)}, True),  # softirq
        ({"rest": (0, 0, 0, 1, 0, 0)}, False),  # steal: somebody else's
        ({"rest": (0, 0, 0, 0, 1, 0)}, False),  # guest: in user already
    ],
    ids=str,
)
async def test_what_is_busy(machine: Machine, ticks: dict[str, int], *, busy: bool) -> None:
    """User, nice, system and interrupts are busy time; idle, iowait, stolen and guest time are not."""
    collector = await machine.open()
    await collector.read()
    machine.clock.advance(1.0)
    machine.procfs.set_ticks(**ticks)  # type: ignore[arg-type]
    assert joules(await collector.read()) == pytest.approx(2.0 + busy * 4.0 / HERTZ)


class Second(NamedTuple):
    """A stretch of a machine's time, looked at in between or not."""

    ticks: int  # of time
    busy: int  # ticks of the two CPUs together, at most 2 * ticks
    looks: list[int]


@st.composite
def stretches(draw: st.DrawFn) -> Second:
    ticks = draw(st.integers(1, 300))
    looks = sorted(draw(st.lists(st.integers(0, ticks - 1), max_size=6)))
    return Second(ticks, draw(st.integers(0, CPUS * ticks)), looks)


@given(seconds=st.lists(stretches(), min_size=1, max_size=6), beats=st.booleans())
async def test_looking_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, seconds: list[Second], *, beats: bool
) -> None:
    """Energy is a matter of time and busy time alone, however often it is looked at, by beat or scrape."""
    procfs = Procfs(tmp_path_factory.mktemp("machine") / "proc", CPUS)
    clock = FakeClock(monotonic=0.0)
    host = Host(procfs=procfs.procfs, clock=clock)
    collector = await estimate.open_collector(OPTIONS, host)
    await collector.read()
    start, busy = 0, 0
    for second in seconds:
        for at in second.looks:
            clock.now = (start + at) / HERTZ
            procfs.set_ticks(user=busy + second.busy * at // second.ticks)
            await (collector.read() if beats else collector.refresh())
        start, busy = start + second.ticks, busy + second.busy
    clock.now = start / HERTZ
    procfs.set_ticks(user=busy)
    assert joules(await collector.read()) == pytest.approx((2.0 * start + 4.0 * busy) / HERTZ)


@pytest.mark.parametrize("every", [0.0015, 0.007, 0.013, 0.05])
async def test_coarse_ticks_lose_nothing(machine: Machine, every: float) -> None:
    """A busy machine's energy is the same when it is looked at more often than its ticks come."""
    collector = await machine.open()
    await collector.read()
    start = machine.clock.now
    while machine.clock.now - start < 2.0:
        machine.clock.advance(every)
        machine.procfs.set_ticks(user=CPUS * int((machine.clock.now - start) * HERTZ))
        reading = await collector.refresh()
    elapsed = machine.clock.now - start
    assert joules(reading) == pytest.approx(10.0 * elapsed, abs=4.0 * CPUS * 1.5 / HERTZ)


async def test_never_beyond_the_maximum(machine: Machine) -> None:
    """Slightly more busy time than fits into the time that passed adds the maximum and no more."""
    collector = await machine.open()
    await collector.read()
    machine.clock.advance(10.0)
    machine.procfs.set_ticks(user=round(10.5 * CPUS * HERTZ))
    assert joules(await collector.read()) == pytest.approx(100.0)


@pytest.mark.parametrize("mode", ["user", "nice", "system"])
@pytest.mark.parametrize("change", [-(10**9), 10**9], ids=["falls", "jumps"])
async def test_busy_time_that_cannot_be_true_adds_nothing(machine: Machine, mode: str, change: int) -> None:
    """A mode that falls or jumps far is left out of its interval: the others count, and then it does too."""
    start = 2 * 10**9
    figures = {"user": start, "nice": start, "system": start}
    machine.procfs.set_ticks(**figures)
    collector = await machine.open()
    await collector.read()
    machine.clock.advance(10.0)
    figures = {name: ticks + HERTZ for name, ticks in figures.items()}
    figures[mode] += change
    machine.procfs.set_ticks(**figures)
    assert joules(await collector.read()) == pytest.approx(20.0 + 2 * 4.0)
    machine.clock.advance(10.0)
    machine.procfs.set_ticks(**{name: ticks + HERTZ for name, ticks in figures.items()})
    assert joules(await collector.read()) == pytest.approx(20.0 + 2 * 4.0 + 20.0 + 3 * 4.0)


async def test_going_backwards_adds_idle_alone(machine: Machine) -> None:
    """If busy time goes back, the interval counts as idle, and no energy is taken away."""
    machine.procfs.set_ticks(user=1000)
    collector = await machine.open()
    await collector.read()
    machine.clock.advance(10.0)
    machine.procfs.set_ticks(user=0)
    assert joules(await collector.read()) == pytest.approx(20.0)


async def test_1920_cpus(tmp_path: Path) -> None:
    """A /proc/stat of any length is read to its end: every CPU is estimated."""
    clock = FakeClock()
    procfs = Procfs(tmp_path / "proc", 1920)
    assert (procfs.procfs / "stat").stat().st_size < 65536
    padded = (procfs.procfs / "stat").read_text().replace(" 1 1 1 1", " 1000000 1000000 1000000 1000000")
    assert len(padded) > 65536
    (procfs.procfs / "stat").write_text(padded)
    collector = await estimate.open_collector(OPTIONS, Host(procfs=procfs.procfs, clock=clock))
    await collector.read()
    clock.advance(1.0)
    assert value(await collector.read(), estimate.POWER, "cpu") == pytest.approx(1920)


async def test_the_first_of_two_sums_is_zero(machine: Machine) -> None:
    """In a container whose /proc/stat begins with a line of zeros, the true line is used."""
    stat = machine.procfs.procfs / "stat"
    collector = await machine.open()
    for second in range(2):
        machine.procfs.set_ticks(user=(1 + second) * HERTZ)
        stat.write_text("cpu  0 0 0 0 0 0 0 0 0 0\n" + stat.read_text())
        reading = await collector.read()
        machine.clock.advance(1.0)
    assert joules(reading) == pytest.approx(2.0 + 4.0)


async def test_scrapes_never_shift_power(machine: Machine) -> None:
    """Power is the mean between beats; looks in between leave it as it is and advance the energy."""
    collector = await machine.open()
    assert isinstance(collector, Refreshes)
    await collector.read()
    machine.clock.advance(1.0)
    await collector.read()
    machine.clock.advance(0.5)
    machine.procfs.set_ticks(user=HERTZ)
    scrape = await collector.refresh()
    assert value(scrape, estimate.POWER, "cpu") == pytest.approx(2.0)
    assert joules(scrape) == pytest.approx(2.0 + 1.0 + 4.0)
    machine.clock.advance(0.5)
    assert value(await collector.read(), estimate.POWER, "cpu") == pytest.approx(6.0)


@pytest.mark.parametrize(
    "stat",
    ["", "\n", "cpu\n", "cpu  a b c d e f g\n", "intr 1 2 3 4 5 6 7 8\n", "cpu  1 2 3 4 5 6 7\n", None],
)
async def test_unusable_stat(machine: Machine, stat: str | None) -> None:
    """Without a usable stat the reading fails; afterwards energy goes on, and the gap adds nothing."""
    collector = await machine.open()
    await collector.read()
    machine.clock.advance(1.0)
    good = (machine.procfs.procfs / "stat").read_text()
    (machine.procfs.procfs / "stat").unlink()
    if stat is not None:
        (machine.procfs.procfs / "stat").write_text(stat)
    with pytest.raises(ReadFailed):
        await collector.read()
    (machine.procfs.procfs / "stat").write_text(good)
    machine.clock.advance(1.0)
    reading = await collector.read()
    assert joules(reading) == 0
    assert values(reading, estimate.POWER) == {}
    machine.clock.advance(1.0)
    assert joules(await collector.read()) == pytest.approx(2.0)


async def test_no_procfs(tmp_path: Path) -> None:
    """Without cpuinfo there is nothing to estimate from."""
    with pytest.raises(Absent, match="cpuinfo"):
        await estimate.open_collector(OPTIONS, Host(procfs=tmp_path))


# -- which watts -------------------------------------------------------------------------------------

KNOWN = [
    ("GenuineIntel", 6, 0x2D, 7, "Sandy Bridge"),
    ("GenuineIntel", 6, 0x3E, 4, "Ivy Bridge"),
    ("GenuineIntel", 6, 0x3F, 2, "Haswell"),
    ("GenuineIntel", 6, 0x4F, 1, "Broadwell"),
    ("GenuineIntel", 6, 0x55, 4, "Skylake"),
    ("GenuineIntel", 6, 0x55, 7, "Cascade Lake"),
    ("GenuineIntel", 6, 0x9E, 10, "Coffee Lake"),
    ("GenuineIntel", 6, 0x6A, 6, "Ice Lake"),
    ("GenuineIntel", 6, 0x8F, 8, "Sapphire Rapids"),
    ("GenuineIntel", 6, 0xCF, 2, "Emerald Rapids"),
    ("GenuineIntel", 6, 0xAD, 1, "Granite Rapids"),
    ("AuthenticAMD", 23, 1, 2, "EPYC 1st Gen"),  # Naples
    ("AuthenticAMD", 23, 8, 2, "EPYC 1st Gen"),  # its workstation sibling
    ("AuthenticAMD", 23, 49, 0, "EPYC 2nd Gen"),  # Rome
    ("AuthenticAMD", 25, 1, 1, "EPYC 3rd Gen"),  # Milan
    ("AuthenticAMD", 25, 17, 1, "EPYC 4th Gen"),  # Genoa
    ("AuthenticAMD", 25, 160, 2, "EPYC 4th Gen"),  # Bergamo
]


@pytest.mark.parametrize(("cpu", "name"), [(known[:4], known[4]) for known in KNOWN])
async def test_known_microarchitectures(machine: Machine, cpu: tuple[str, int, int, int], name: str) -> None:
    """A CPU that the table knows is estimated with its own watts, and the info metric names them."""
    machine.procfs.set_cpu(*cpu)
    reading = await spend(machine, 1.0, estimate.Options())
    watts = estimate.COEFFICIENTS[name]
    ((labels, one),) = values(reading, estimate.MODEL).items()
    assert one == 1
    assert labels == (name, f"{watts.idle:g}", f"{watts.max:g}", str(CPUS), "table")
    assert value(reading, estimate.POWER, "cpu") == pytest.approx(CPUS * watts.max)


@pytest.mark.parametrize(
    ("vendor", "family", "model", "name"),
    [
        ("AuthenticAMD", 26, 2, "AMD EPYC 9965"),
        ("GenuineIntel", 6, 0xFF, "Intel of tomorrow"),
        ("GenuineIntel", 15, 0x55, "Pentium 4"),
        ("HygonGenuine", 24, 1, "Hygon C86"),
        ("GenuineIntel", "?", 1, "What family"),
    ],
)
async def test_unknown_cpu_takes_the_mean(
    machine: Machine, vendor: str, family: int | str, model: int, name: str
) -> None:
    """A CPU that the table does not know gets the table's mean, under its own name, and says so."""
    machine.procfs.set_cpu(vendor, family, model, 0, name)
    reading = await spend(machine, 0.0, estimate.Options())
    ((labels, _),) = values(reading, estimate.MODEL).items()
    assert labels[0] == name
    assert labels[-1] == "mean of the table"
    assert value(reading, estimate.POWER, "cpu") == pytest.approx(CPUS * estimate.MEAN.idle)


@pytest.mark.parametrize("cpuinfo", ["", "Processor : ARMv8\nFeatures : fp\n", "\x00\xff", "model name\n"])
async def test_cpuinfo_without_a_name(machine: Machine, cpuinfo: str) -> None:
    """A cpuinfo that says nothing useful is an unknown CPU, not an error."""
    (machine.procfs.procfs / "cpuinfo").write_text(cpuinfo)
    ((labels, _),) = values(await spend(machine, 0.0, estimate.Options()), estimate.MODEL).items()
    assert labels[0] == "unknown"


async def test_config_overrides(machine: Machine) -> None:
    """Configured watts win over the table's, and the info metric says so."""
    machine.procfs.set_cpu(model=0x8F)
    reading = await spend(machine, 1.0)
    ((labels, _),) = values(reading, estimate.MODEL).items()
    assert labels == ("Sapphire Rapids", "1", "5", str(CPUS), "config")


async def test_reload_changes_watts_and_keeps_joules(machine: Machine) -> None:
    """New watts hold from the reload on; what was estimated stays."""
    collector = await machine.open()
    assert isinstance(collector, Reconfigures)
    await collector.read()
    machine.clock.advance(10.0)
    await collector.read()
    collector.configure(estimate.Options(idle_watts_per_cpu=3.0, max_watts_per_cpu=5.0))
    machine.clock.advance(10.0)
    assert joules(await collector.read()) == pytest.approx(20.0 + 60.0)


def test_coefficients_are_watts() -> None:
    """Every row of the table takes more watts busy than idle, and the mean lies among them."""
    for watts in (*estimate.COEFFICIENTS.values(), estimate.MEAN):
        assert 0 < watts.idle < watts.max < 10
    assert min(w.max for w in estimate.COEFFICIENTS.values()) < estimate.MEAN.max


@pytest.mark.parametrize(
    ("idle", "busy", "good"),
    [(0, 0, True), (1, 5, True), (3, 3, True), (1, 0, False), (0, 5, False), (5, 1, False), (-1, 1, False)],
)
def test_options(idle: float, busy: float, *, good: bool) -> None:
    """Watts that make no sense are refused when the configuration is read."""
    options = estimate.Options(idle_watts_per_cpu=idle, max_watts_per_cpu=busy)
    assert (not list(options.problems())) is good
