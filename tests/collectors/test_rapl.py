"""RAPL: which zones are shown, which are metered, and what every fault does to the counters."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import RANGE_15_UJ, RANGE_61_UJ, FakeClock, Faults, Powercap, add_up, value, values

from powerbench_agent.agent.node import NODE_ENERGY, Node
from powerbench_agent.collectors import rapl
from powerbench_agent.core.host import Host
from powerbench_agent.core.model import Absent, Meter, ReadFailed, Reading, Refreshes
from powerbench_agent.core.options import Seconds

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE = ("0", "package", "intel-rapl:0")


class Machine(NamedTuple):
    powercap: Powercap
    clock: FakeClock
    faults: Faults
    host: Host

    async def open(self) -> rapl.Rapl:
        return await rapl.open_collector(rapl.Options(), self.host)

    async def beat(self, collector: rapl.Rapl, **joules: float) -> Reading:
        """Let a second pass; `zone_0_1=5.0` sets the counter of intel-rapl:0:1."""
        self.clock.advance(1.0)
        for path, energy in joules.items():
            self.powercap.set_joules(path.replace("zone_", "intel-rapl:").replace("_", ":"), energy)
        return await collector.read()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    clock, faults = FakeClock(), Faults()
    return Machine(Powercap(tmp_path), clock, faults, Host(sysfs=tmp_path, clock=clock, read=faults))


def meters(reading: Reading) -> dict[tuple[str, str], float]:
    assert {meter.source for meter in reading.meters} <= {"rapl"}
    return {(meter.component, meter.key): meter.joules for meter in reading.meters}


# -- zones and labels --------------------------------------------------------------------------------


async def test_desktop_zones(machine: Machine) -> None:
    """A desktop's zones carry their package's number, psys none; the package alone is metered."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    machine.powercap.zone("intel-rapl:0:0", "core")
    machine.powercap.zone("intel-rapl:0:1", "uncore")
    machine.powercap.zone("intel-rapl:1", "psys")
    reading = await (await machine.open()).read()
    assert set(values(reading, rapl.ENERGY)) == {
        PACKAGE,
        ("0", "core", "intel-rapl:0:0"),
        ("0", "uncore", "intel-rapl:0:1"),
        ("", "psys", "intel-rapl:1"),
    }
    assert list(meters(reading)) == [("cpu", "intel-rapl:0")]
    assert value(reading, rapl.ZONES) == 4
    assert value(reading, rapl.AVAILABLE) == 1


async def test_package_number_is_in_the_name(machine: Machine) -> None:
    """The package's number comes out of the zone's name; its children take it; directories are just paths."""
    machine.powercap.zone("intel-rapl:0", "package-1")
    machine.powercap.zone("intel-rapl:0:0", "dram", range_uj=RANGE_15_UJ)
    machine.powercap.zone("intel-rapl:1", "package-0")
    machine.powercap.zone("intel-rapl:1:0", "dram", range_uj=RANGE_15_UJ)
    reading = await (await machine.open()).read()
    assert set(values(reading, rapl.ENERGY)) == {
        ("1", "package", "intel-rapl:0"),
        ("1", "dram", "intel-rapl:0:0"),
        ("0", "package", "intel-rapl:1"),
        ("0", "dram", "intel-rapl:1:0"),
    }


async def test_hexadecimal_directories(machine: Machine) -> None:
    """Zones past the ninth have letters in their directories, and are found."""
    for number in range(12):
        machine.powercap.zone(f"intel-rapl:{number:x}", f"package-{number}")
        machine.powercap.zone(f"intel-rapl:{number:x}:0", "core")
    reading = await (await machine.open()).read()
    found = set(values(reading, rapl.ENERGY))
    assert ("10", "package", "intel-rapl:a") in found
    assert ("11", "core", "intel-rapl:b:0") in found
    assert value(reading, rapl.ZONES) == 24
    assert len(reading.meters) == 12


async def test_server_dram_beside_package(machine: Machine) -> None:
    """Dram is metered as dram, beside the package, one a socket."""
    for socket in range(2):
        machine.powercap.zone(f"intel-rapl:{socket}", f"package-{socket}")
        machine.powercap.zone(f"intel-rapl:{socket}:0", "dram", range_uj=RANGE_15_UJ)
    assert set(meters(await (await machine.open()).read())) == {
        ("cpu", "intel-rapl:0"),
        ("cpu", "intel-rapl:1"),
        ("dram", "intel-rapl:0:0"),
        ("dram", "intel-rapl:1:0"),
    }


async def test_mmio_twin_is_shown_and_not_metered(machine: Machine) -> None:
    """The MMIO twin of a package is shown as its own series and not metered."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    machine.powercap.zone("intel-rapl-mmio:0", "package-0")
    reading = await (await machine.open()).read()
    assert set(values(reading, rapl.ENERGY)) == {PACKAGE, ("0", "package", "intel-rapl-mmio:0")}
    assert list(meters(reading)) == [("cpu", "intel-rapl:0")]


async def test_mmio_alone_is_metered(machine: Machine) -> None:
    """If MMIO is the only interface, its zones are metered."""
    machine.powercap.zone("intel-rapl-mmio:0", "package-0")
    machine.powercap.zone("intel-rapl-mmio:0:0", "dram")
    assert list(meters(await (await machine.open()).read())) == [
        ("cpu", "intel-rapl-mmio:0"),
        ("dram", "intel-rapl-mmio:0:0"),
    ]


async def test_amd_core_is_not_metered(machine: Machine) -> None:
    """AMD's package and core: the package is the meter."""
    machine.powercap.zone("intel-rapl:0", "package-0", range_uj=RANGE_15_UJ)
    machine.powercap.zone("intel-rapl:0:0", "core", range_uj=RANGE_15_UJ)
    assert list(meters(await (await machine.open()).read())) == [("cpu", "intel-rapl:0")]


async def test_other_directories_are_no_zones(machine: Machine) -> None:
    """The control type's own directory and the zones of other drivers are not RAPL zones."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    machine.powercap.zone("dtpm:0", "cpu0")
    reading = await (await machine.open()).read()
    assert value(reading, rapl.ZONES) == 1


async def test_label_values_never_repeat_a_series(machine: Machine) -> None:
    """Every zone kind at once gives no series twice."""
    machine.powercap.zone("intel-rapl:0", "package-0", limits={"long_term": 45, "short_term": 60})
    machine.powercap.zone("intel-rapl-mmio:0", "package-0", limits={"long_term": 45, "short_term": 60})
    machine.powercap.zone("intel-rapl:0:0", "core")
    machine.powercap.zone("intel-rapl:1", "psys")
    collector = await machine.open()
    await collector.read()
    reading = await machine.beat(collector)
    series = [(sample.metric.name, sample.labels) for sample in reading.samples]
    assert len(series) == len(set(series))


# -- dies --------------------------------------------------------------------------------------------


async def test_mirrored_dies_are_metered_once(machine: Machine) -> None:
    """Dies whose counters are one register under two names are shown both and metered once."""
    machine.powercap.zone("intel-rapl:0", "package-0-die-0", 5000e6, RANGE_15_UJ)
    machine.powercap.zone("intel-rapl:1", "package-0-die-1", 5000.3e6, RANGE_15_UJ)
    collector = await machine.open()
    readings = [await collector.read()]
    readings += [
        await machine.beat(collector, zone_0=5000 + 80 * n, zone_1=5000.3 + 80 * n) for n in range(1, 6)
    ]
    assert {tuple(meters(reading)) for reading in readings} == {(("cpu", "intel-rapl:0"),)}
    assert meters(readings[-1])["cpu", "intel-rapl:0"] == pytest.approx(400)
    assert set(values(readings[-1], rapl.ENERGY)) == {
        ("0", "package", "intel-rapl:0"),
        ("0", "package", "intel-rapl:1"),
    }


async def test_independent_dies_are_metered_both(machine: Machine) -> None:
    """Dies with counters of their own are both in the node's sum, from the first reading on."""
    machine.powercap.zone("intel-rapl:0", "package-0-die-0", 5000e6)
    machine.powercap.zone("intel-rapl:1", "package-0-die-1", 9000e6)
    collector, node = await machine.open(), Node()
    total = 0.0
    add_up(node, [await collector.read()])
    for n in range(1, 6):
        reading = await machine.beat(collector, zone_0=5000 + 80 * n, zone_1=9000 + 30 * n)
        total = add_up(node, [reading]).samples[0].value
    assert total == pytest.approx(5 * 110)


async def test_crossing_counters_do_not_make_dies_mirrors_for_good(machine: Machine) -> None:
    """Dies that agree for a while and then part are both metered, and nothing of either is lost."""
    machine.powercap.zone("intel-rapl:0", "package-0-die-0")
    machine.powercap.zone("intel-rapl:1", "package-0-die-1")
    collector = await machine.open()
    await collector.read()
    for _ in range(3):
        reading = await machine.beat(collector)
    assert len(reading.meters) == 1
    for n in range(1, 5):
        reading = await machine.beat(collector, zone_0=90 * n, zone_1=40 * n)
    assert meters(reading) == {("cpu", "intel-rapl:0"): 360, ("cpu", "intel-rapl:1"): 160}


async def test_mirror_survives_one_wrap(machine: Machine) -> None:
    """One reading on either side of the wrap does not make two counters of a mirrored one."""
    machine.powercap.zone("intel-rapl:0", "package-0-die-0", 65000e6, RANGE_15_UJ)
    machine.powercap.zone("intel-rapl:1", "package-0-die-1", 65000e6, RANGE_15_UJ)
    collector = await machine.open()
    await collector.read()
    await machine.beat(collector, zone_0=65200, zone_1=65200)
    await machine.beat(collector, zone_0=65400, zone_1=65400)
    reading = await machine.beat(collector, zone_0=65532, zone_1=0.1)
    reading = await machine.beat(collector, zone_0=200, zone_1=200.2)
    assert list(meters(reading)) == [("cpu", "intel-rapl:0")]


# -- the counter -------------------------------------------------------------------------------------


async def test_starts_at_zero(machine: Machine) -> None:
    """Joules count from the agent's start, whatever the register holds."""
    machine.powercap.zone("intel-rapl:0", "package-0", 123456e6)
    collector = await machine.open()
    assert value(await collector.read(), rapl.ENERGY, *PACKAGE) == 0
    assert value(await machine.beat(collector, zone_0=123501), rapl.ENERGY, *PACKAGE) == 45


@pytest.mark.parametrize("range_uj", [RANGE_61_UJ, RANGE_15_UJ])
async def test_wrap(machine: Machine, range_uj: int) -> None:
    """A register that wraps goes on counting, and the wrap is counted."""
    machine.powercap.zone("intel-rapl:0", "package-0", range_uj - 30e6, range_uj)
    collector = await machine.open()
    await collector.read()
    reading = await machine.beat(collector, zone_0=50)
    assert value(reading, rapl.ENERGY, *PACKAGE) == pytest.approx(80)
    assert value(reading, rapl.WRAPS, *PACKAGE) == 1
    assert value(reading, rapl.RESETS, *PACKAGE) == 0


async def test_reset(machine: Machine) -> None:
    """A fall that no part could have wrapped through is a reset: it adds nothing, the next beat counts."""
    machine.powercap.zone("intel-rapl:0", "package-0", 100000e6)
    collector = await machine.open()
    await collector.read()
    reading = await machine.beat(collector, zone_0=10)
    assert value(reading, rapl.ENERGY, *PACKAGE) == 0
    assert value(reading, rapl.RESETS, *PACKAGE) == 1
    assert value(reading, rapl.WRAPS, *PACKAGE) == 0
    assert value(await machine.beat(collector, zone_0=55), rapl.ENERGY, *PACKAGE) == 45


async def test_power_limit_bounds_a_wrap(machine: Machine) -> None:
    """A fall that would have taken several times the zone's power limit is a reset."""
    machine.powercap.zone("intel-rapl:0", "package-0", RANGE_61_UJ - 1000e6, limits={"long_term": 65.0})
    collector = await machine.open()
    await collector.read()
    reading = await machine.beat(collector, zone_0=10)
    assert value(reading, rapl.ENERGY, *PACKAGE) == 0
    assert value(reading, rapl.RESETS, *PACKAGE) == 1


async def test_sentinel_is_no_energy(machine: Machine) -> None:
    """A value beyond what any part draws adds nothing; what was used meanwhile is in the next reading."""
    machine.powercap.zone("intel-rapl:0", "package-0", 100e6)
    collector = await machine.open()
    await collector.read()
    assert value(await machine.beat(collector, zone_0=200000), rapl.ENERGY, *PACKAGE) == 0
    reading = await machine.beat(collector, zone_0=150)
    assert value(reading, rapl.ENERGY, *PACKAGE) == 50
    assert value(reading, rapl.RESETS, *PACKAGE) == 2


async def test_equal_reading_is_no_wrap(machine: Machine) -> None:
    """A counter that stands still adds nothing: neither a wrap nor a reset; a package's power is unknown."""
    machine.powercap.zone("intel-rapl:0", "package-0", RANGE_61_UJ)
    collector = await machine.open()
    await collector.read()
    for _ in range(3):
        reading = await machine.beat(collector)
    assert value(reading, rapl.ENERGY, *PACKAGE) == 0
    assert PACKAGE not in values(reading, rapl.POWER)
    assert value(reading, rapl.WRAPS, *PACKAGE) == 0
    assert value(reading, rapl.RESETS, *PACKAGE) == 0


@pytest.mark.parametrize("range_uj", ["", "0", "-1", "many", None])
async def test_unusable_range(machine: Machine, range_uj: str | None) -> None:
    """Without a usable range a zone counts all the same, and a fall is a reset."""
    machine.powercap.zone("intel-rapl:0", "package-0", 100e6, range_uj)
    collector = await machine.open()
    await collector.read()
    assert value(await machine.beat(collector, zone_0=130), rapl.ENERGY, *PACKAGE) == 30
    reading = await machine.beat(collector, zone_0=1)
    assert value(reading, rapl.ENERGY, *PACKAGE) == 30
    assert value(reading, rapl.RESETS, *PACKAGE) == 1


# -- power and limits --------------------------------------------------------------------------------


async def test_power_is_the_beats_mean(machine: Machine) -> None:
    """Power is the energy between two beats over the time between them; the first beat has none."""
    machine.powercap.zone("intel-rapl:0", "package-0", 100e6)
    collector = await machine.open()
    assert values(await collector.read(), rapl.POWER) == {}
    assert value(await machine.beat(collector, zone_0=142), rapl.POWER, *PACKAGE) == 42
    machine.clock.advance(1.0)
    assert value(await machine.beat(collector, zone_0=152), rapl.POWER, *PACKAGE) == 5


async def test_scrapes_never_shift_power(machine: Machine) -> None:
    """Scrapes between beats leave the power gauge alone and read the counter again."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    collector = await machine.open()
    assert isinstance(collector, Refreshes)
    await collector.read()
    await machine.beat(collector, zone_0=50)
    for n in range(1, 10):
        machine.clock.advance(0.1)
        machine.powercap.set_joules("intel-rapl:0", 50 + 30 * n)
        scrape = await collector.refresh()
        assert value(scrape, rapl.POWER, *PACKAGE) == 50
        assert value(scrape, rapl.ENERGY, *PACKAGE) == 50 + 30 * n
        assert scrape.taken == machine.clock.now
    machine.clock.advance(0.1)
    machine.powercap.set_joules("intel-rapl:0", 350)
    assert value(await collector.read(), rapl.POWER, *PACKAGE) == pytest.approx(300)


async def test_no_power_over_a_gap(machine: Machine) -> None:
    """After a beat that failed on one zone, no zone shows power until a full interval has passed."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    machine.powercap.zone("intel-rapl:1", "package-1")
    collector = await machine.open()
    await collector.read()
    await machine.beat(collector, zone_0=50, zone_1=50)
    machine.faults.errors["intel-rapl:1/energy_uj"] = OSError(errno.EIO, "Input/output error")
    with pytest.raises(ReadFailed):
        await machine.beat(collector, zone_0=100, zone_1=100)
    machine.faults.errors.clear()
    reading = await machine.beat(collector, zone_0=150, zone_1=150)
    assert values(reading, rapl.POWER) == {}
    assert value(reading, rapl.ENERGY, *PACKAGE) == 150
    reading = await machine.beat(collector, zone_0=190, zone_1=160)
    assert sorted(values(reading, rapl.POWER).values()) == [10, 40]


async def test_power_limits(machine: Machine) -> None:
    """Each constraint's limit is shown in watts; a limit of 0 is left out."""
    machine.powercap.zone(
        "intel-rapl:0", "package-0", limits={"long_term": 65.0, "short_term": 90.5, "peak_power": 0}
    )
    assert values(await (await machine.open()).read(), rapl.LIMIT) == {
        (*PACKAGE, "long_term"): 65.0,
        (*PACKAGE, "short_term"): 90.5,
    }


async def test_unreadable_limit_is_left_out(machine: Machine) -> None:
    """A constraint that cannot be read hides neither the next one nor the energy."""
    machine.powercap.zone("intel-rapl:0", "package-0", limits={"long_term": 65.0, "short_term": 90.0})
    machine.faults.errors["constraint_0_power_limit_uw"] = OSError(errno.ENODATA, "No data available")
    reading = await (await machine.open()).read()
    assert values(reading, rapl.LIMIT) == {(*PACKAGE, "short_term"): 90.0}
    assert value(reading, rapl.ENERGY, *PACKAGE) == 0


# -- faults ------------------------------------------------------------------------------------------


async def test_eio_on_a_package_fails_all(machine: Machine) -> None:
    """A package that cannot be read fails the whole reading: a sum without it would be too low."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    machine.powercap.zone("intel-rapl:1", "package-1")
    collector = await machine.open()
    await collector.read()
    machine.powercap.break_eio("intel-rapl:1")
    with pytest.raises(ReadFailed, match=r"intel-rapl:1.*Input/output error") as failed:
        await machine.beat(collector)
    assert failed.value.remedy
    with pytest.raises(ReadFailed):
        await collector.refresh()
    machine.powercap.mend("intel-rapl:1", 30)
    reading = await machine.beat(collector, zone_0=70)
    assert set(values(reading, rapl.ENERGY).values()) == {30, 70}


async def test_eio_on_psys_leaves_it_out(machine: Machine) -> None:
    """A zone outside the sum that cannot be read is left out, and comes back."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    machine.powercap.zone("intel-rapl:1", "psys")
    collector = await machine.open()
    await collector.read()
    machine.powercap.break_eio("intel-rapl:1")
    reading = await machine.beat(collector, zone_0=40)
    assert values(reading, rapl.ENERGY) == {PACKAGE: 40}
    assert value(reading, rapl.POWER, *PACKAGE) == 40
    machine.powercap.mend("intel-rapl:1", 90)
    reading = await machine.beat(collector)
    assert value(reading, rapl.ENERGY, "", "psys", "intel-rapl:1") == 90
    assert ("", "psys", "intel-rapl:1") not in values(reading, rapl.POWER)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENODATA, errno.EINVAL])
async def test_failing_twin_does_not_take_the_meter_down(machine: Machine, code: int) -> None:
    """A twin is outside the sum: when it cannot be read, it is left out and the package stays."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    machine.powercap.zone("intel-rapl-mmio:0", "package-0")
    machine.faults.errors["intel-rapl-mmio:0/energy_uj"] = OSError(code, "no")
    collector = await machine.open()
    await collector.read()
    reading = await machine.beat(collector, zone_0=40)
    assert values(reading, rapl.ENERGY) == {PACKAGE: 40}
    assert meters(reading) == {("cpu", "intel-rapl:0"): 40}


async def test_garbage_is_a_read_error(machine: Machine) -> None:
    """A counter file that holds no number fails the reading instead of counting as 0."""
    machine.powercap.zone("intel-rapl:0", "package-0", 5e6)
    collector = await machine.open()
    await collector.read()
    for garbage in ("", "\n", "0x10", "12 34", "1.5", "nan"):
        machine.powercap.file("intel-rapl:0").write_text(garbage)
        machine.clock.advance(1.0)
        with pytest.raises(ReadFailed):
            await collector.read()
    assert value(await machine.beat(collector, zone_0=25), rapl.ENERGY, *PACKAGE) == 20


async def test_permission_denied_then_granted(machine: Machine) -> None:
    """Refused permission is a verdict with a remedy; once granted the counter counts."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    machine.faults.errors["energy_uj"] = PermissionError(errno.EACCES, "Permission denied")
    collector = await machine.open()
    for _ in range(2):
        with pytest.raises(ReadFailed, match="may not read") as failed:
            await machine.beat(collector)
    assert "powercap" in failed.value.remedy
    assert "CAP_DAC_READ_SEARCH" in failed.value.remedy
    machine.faults.errors.clear()
    assert value(await machine.beat(collector, zone_0=500), rapl.ENERGY, *PACKAGE) == 0
    assert value(await machine.beat(collector, zone_0=530), rapl.ENERGY, *PACKAGE) == 30


async def test_permission_taken_away_and_given_back(machine: Machine) -> None:
    """A counter goes on across a time without permission: what it counted meanwhile is there."""
    machine.powercap.zone("intel-rapl:0", "package-0", 100e6)
    collector = await machine.open()
    await collector.read()
    await machine.beat(collector, zone_0=120)
    machine.faults.errors["energy_uj"] = PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(ReadFailed):
        await machine.beat(collector, zone_0=140)
    machine.faults.errors.clear()
    reading = await machine.beat(collector, zone_0=160)
    assert value(reading, rapl.ENERGY, *PACKAGE) == 60
    assert value(reading, rapl.RESETS, *PACKAGE) == 0


async def test_zone_that_appears_is_found(machine: Machine) -> None:
    """A zone that appears is shown within 10 s, from 0."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    collector = await machine.open()
    await collector.read()
    machine.powercap.zone("intel-rapl:1", "package-1", 7000e6)
    for _ in range(10):
        reading = await machine.beat(collector)
    assert value(reading, rapl.ENERGY, "1", "package", "intel-rapl:1") == 0
    assert value(reading, rapl.ZONES) == 2


async def test_forbidden_zone_that_appears_fails_all(machine: Machine) -> None:
    """A package that appears and may not be read is a verdict, not a sum without it."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    collector = await machine.open()
    await collector.read()
    machine.powercap.zone("intel-rapl:1", "package-1")
    machine.faults.errors["intel-rapl:1/energy_uj"] = PermissionError(errno.EACCES, "Permission denied")
    machine.clock.advance(9.0)
    with pytest.raises(ReadFailed, match="intel-rapl:1") as failed:
        await machine.beat(collector)
    assert failed.value.remedy


async def test_zone_that_vanishes_and_returns(machine: Machine) -> None:
    """A zone that vanishes leaves the page at once; when it returns its counter goes on, never back."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    machine.powercap.zone("intel-rapl:1", "package-1")
    collector = await machine.open()
    await collector.read()
    await machine.beat(collector, zone_0=40, zone_1=60)
    machine.powercap.remove("intel-rapl:1")
    reading = await machine.beat(collector, zone_0=80)
    assert values(reading, rapl.ENERGY) == {PACKAGE: 80}
    assert value(reading, rapl.ZONES) == 1
    machine.powercap.zone("intel-rapl:1", "package-1", 0)
    for _ in range(10):
        reading = await machine.beat(collector)
    assert value(reading, rapl.ENERGY, "1", "package", "intel-rapl:1") == 60
    assert value(await machine.beat(collector, zone_1=25), rapl.ENERGY, "1", "package", "intel-rapl:1") == 85


async def test_twin_that_takes_over_brings_nothing_along(machine: Machine) -> None:
    """When the metered interface goes and its twin stays, the node counts each joule once."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    machine.powercap.zone("intel-rapl-mmio:0", "package-0")
    collector, node = await machine.open(), Node()
    add_up(node, [await collector.read()])
    for n in range(1, 6):
        machine.powercap.set_joules("intel-rapl-mmio:0", 50 * n)
        add_up(node, [await machine.beat(collector, zone_0=50 * n)])
    machine.powercap.remove("intel-rapl:0")
    for n in range(6, 9):
        machine.powercap.set_joules("intel-rapl-mmio:0", 50 * n)
        total = add_up(node, [await machine.beat(collector)]).samples[0].value
    assert total <= 8 * 50


async def test_all_zones_vanish(machine: Machine) -> None:
    """When the last zone goes, RAPL is absent."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    machine.powercap.zone("intel-rapl:0:0", "core")
    collector = await machine.open()
    await collector.read()
    machine.powercap.remove("intel-rapl:0")
    with pytest.raises(Absent):
        await machine.beat(collector)


@pytest.mark.parametrize("what", ["no directory", "no zones", "dangling links"])
async def test_no_zones(tmp_path: Path, what: str) -> None:
    """A machine without a usable zone has no RAPL, and the verdict says why."""
    if what != "no directory":
        powercap = Powercap(tmp_path)
        if what == "dangling links":
            (powercap.sysfs / "class/powercap/intel-rapl:0").symlink_to("../../devices/nowhere")
    with pytest.raises(Absent, match="no RAPL"):
        await rapl.open_collector(rapl.Options(), Host(sysfs=tmp_path, clock=FakeClock()))


async def test_name_that_is_no_utf8(machine: Machine) -> None:
    """A zone whose name is not text is shown with labels that a page can hold."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    machine.powercap.zone("intel-rapl:0:0", "core")
    machine.powercap.file("intel-rapl:0:0", "name").write_bytes(b"\xff\xfe\n")
    labels = {label for sample in (await (await machine.open()).read()).samples for label in sample.labels}
    assert "\ufffd\ufffd" in labels
    assert "".join(labels).encode()


@pytest.mark.parametrize(("interval", "good"), [(1.0, True), (30.0, True), (31.0, False), (0.01, False)])
def test_interval_is_bounded(interval: float, *, good: bool) -> None:
    """An interval that could miss a wrap is refused when the configuration is read."""
    problems = list(rapl.Options(interval=Seconds(interval)).problems())
    assert (not problems) is good


# -- any sequence of faults --------------------------------------------------------------------------

FAULTS = ("run", "scrape", "reset", "eio", "eacces", "core eio", "garbage", "core toggles", "set")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(FAULTS),
        st.floats(0.1, 40.0),  # seconds since the step before
        st.integers(0, RANGE_15_UJ),  # µJ: the value of "set"; else a draw of at most 2500 W
    ),
    max_size=25,
)


@settings(max_examples=120, deadline=None)
@given(steps=STEPS)
async def test_counters_never_decrease(  # noqa: C901 - a branch a fault
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, float, int]]
) -> None:
    """Whatever happens to the files, no counter ever falls, nor gains more than any part could draw."""
    tmp_path = tmp_path_factory.mktemp("faults")
    clock, faults = FakeClock(), Faults()
    powercap = Powercap(tmp_path)
    powercap.zone("intel-rapl:0", "package-0", 0, RANGE_15_UJ)
    collector = await rapl.open_collector(rapl.Options(), Host(sysfs=tmp_path, clock=clock, read=faults))
    latest: dict[tuple[object, ...], float] = {}
    start = clock.now
    raw_uj = 0
    core = False
    for what, seconds, energy_uj in steps:
        clock.advance(seconds)
        faults.errors.clear()
        raw_uj = (raw_uj + energy_uj % int(2500e6 * seconds)) % RANGE_15_UJ
        if what == "reset":
            raw_uj = 0
        elif what == "set":
            raw_uj = energy_uj
        elif what.endswith(("eio", "eacces")):
            end = "intel-rapl:0:0/energy_uj" if what.startswith("core") else "energy_uj"
            faults.errors[end] = OSError(getattr(errno, what.split()[-1].upper()), what)
        elif what == "core toggles":
            core = not core
            if core:
                powercap.zone("intel-rapl:0:0", "core", 0, RANGE_15_UJ)
            else:
                powercap.remove("intel-rapl:0:0")
        powercap.file("intel-rapl:0").write_text("?" if what == "garbage" else f"{raw_uj}\n")
        if core:
            powercap.set_joules("intel-rapl:0:0", raw_uj / 2e6)
        try:
            reading = await (collector.refresh() if what == "scrape" else collector.read())
        except ReadFailed:
            assert what in ("eio", "eacces", "garbage")
            continue
        for sample in reading.samples:
            assert sample.value >= 0
            if sample.metric.kind == "counter":
                series = (sample.metric, sample.labels)
                assert sample.value >= latest.get(series, 0)
                latest[series] = sample.value
        gained = value(reading, rapl.ENERGY, *PACKAGE)
        assert gained <= 2000.0 * (clock.now - start + 0.1 * len(steps))


async def test_what_is_estimated_while_rapl_is_away_is_not_counted_again(machine: Machine) -> None:
    """Unloaded and loaded again, RAPL goes on from where it was: the node holds each second once."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    collector, node = await machine.open(), Node()
    estimated = 0.0

    def beat(*readings: Reading, measured: bool) -> float:
        guess = Reading((), (Meter("cpu", "estimate", "cpu", estimated),), machine.clock.monotonic())
        found = add_up(node, [guess, *readings], {"cpu"} if measured else ())
        return sum(sample.value for sample in found.samples if sample.metric is NODE_ENERGY)

    beat(await collector.read(), measured=True)
    before = beat(await machine.beat(collector, zone_0=100), measured=True)
    assert before == 100
    machine.powercap.remove("intel-rapl:0")
    for _ in range(60):
        estimated += 100
        with pytest.raises(Absent):
            await machine.beat(collector)
        away = beat(measured=False)
    machine.powercap.zone("intel-rapl:0", "package-0", 6100e6)
    estimated += 100
    machine.clock.advance(1.0)
    back = beat(await collector.read(), measured=True)
    assert (away, back) == (6000, 100)
    assert beat(await machine.beat(collector, zone_0=6200), measured=True) == 200


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.EACCES])
async def test_a_scan_that_fails_is_down_and_not_absent(machine: Machine, code: int) -> None:
    """Without free descriptors RAPL fails and is not absent: nothing is estimated, no energy is lost."""
    machine.powercap.zone("intel-rapl:0", "package-0")
    collector = await machine.open()
    await collector.read()
    machine.faults.errors["intel-rapl:0/name"] = OSError(code, os.strerror(code))
    machine.clock.advance(rapl.RESCAN_SECONDS)
    with pytest.raises(ReadFailed):
        await machine.beat(collector, zone_0=500)
    machine.faults.errors.clear()
    reading = await machine.beat(collector, zone_0=550)
    assert value(reading, rapl.ENERGY, *PACKAGE) == 550
    assert PACKAGE not in values(reading, rapl.POWER)
