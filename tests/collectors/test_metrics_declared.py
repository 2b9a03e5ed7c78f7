"""What is on the page is what was declared: names, kinds and labels that dashboards rely on."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from trees import FakeClock, Powercap, Procfs, add_frequency, add_hwmon

from powerbench_agent.collectors import estimate, host, rapl, textfile
from powerbench_agent.collectors.ffmpeg import collector as ffmpeg
from powerbench_agent.core.host import Host
from powerbench_agent.core.identity import StreamIdentity
from powerbench_agent.core.model import Metric, Reading, Refreshes

if TYPE_CHECKING:
    from pathlib import Path

MODULES = {"rapl": rapl, "ffmpeg": ffmpeg, "host": host, "textfile": textfile, "estimate": estimate}

_ZONE = ("package", "zone", "path")
_STREAM = ("stream",)
FIXED = {
    "rapl": {
        "rapl_power_watts": ("gauge", _ZONE),
        "rapl_energy_joules_total": ("counter", _ZONE),
        "rapl_wraps_total": ("counter", _ZONE),
        "rapl_resets_total": ("counter", _ZONE),
        "rapl_power_limit_watts": ("gauge", (*_ZONE, "constraint")),
        "rapl_zones_discovered": ("gauge", ()),
        "rapl_available": ("gauge", ()),
    },
    "ffmpeg": {
        "ffmpeg_fps": ("gauge", _STREAM),
        "ffmpeg_speed": ("gauge", _STREAM),
        "ffmpeg_bitrate_kbps": ("gauge", _STREAM),
        "ffmpeg_total_frames": ("unknown", _STREAM),
        "ffmpeg_dropped_frames": ("unknown", _STREAM),
        "ffmpeg_stream_active": ("gauge", _STREAM),
        "ffmpeg_stream_stalled": ("gauge", _STREAM),
        "ffmpeg_frames_total": ("counter", _STREAM),
        "ffmpeg_frames_dropped_total": ("counter", _STREAM),
        "ffmpeg_frames_duplicated_total": ("counter", _STREAM),
        "ffmpeg_output_bytes_total": ("counter", _STREAM),
        "ffmpeg_media_seconds_total": ("counter", _STREAM),
        "ffmpeg_stream_restarts_total": ("counter", _STREAM),
        "ffmpeg_stream_last_update_timestamp_seconds": ("gauge", _STREAM),
        "ffmpeg_stream_info": (
            "gauge",
            ("stream", "codec", "encoder", "preset", "resolution", "fps", "container"),
        ),
        "ffmpeg_megapixels_total": ("counter", _STREAM),
        "ffmpeg_ingest_rejected_total": ("counter", ("reason",)),
    },
    "host": {
        "host_cpu_seconds_total": ("counter", ("mode",)),
        "host_cpu_frequency_hertz": ("gauge", ("stat",)),
        "host_load1": ("gauge", ()),
        "host_memory_available_bytes": ("gauge", ()),
        "host_memory_total_bytes": ("gauge", ()),
        "host_temperature_celsius": ("gauge", ("chip", "sensor")),
    },
}


@pytest.fixture
def machine(tmp_path: Path) -> Host:
    """Return a machine on which every collector finds everything that it can show."""
    sysfs = tmp_path / "sys"
    powercap = Powercap(sysfs)
    powercap.zone("intel-rapl:0", "package-0", limits={"long_term": 65.0, "short_term": 90.0})
    powercap.zone("intel-rapl:0:0", "core")
    powercap.zone("intel-rapl:0:1", "dram")
    powercap.zone("intel-rapl:1", "psys")
    powercap.zone("intel-rapl-mmio:0", "package-0")
    add_frequency(sysfs, 0, "800000\n")
    add_hwmon(sysfs, 0, "platform/coretemp.0", {"temp1_input": "42000"})
    procfs = Procfs(tmp_path / "proc")
    (tmp_path / "files").mkdir()
    (tmp_path / "files/bad.prom").write_text("nonsense here\n")
    (tmp_path / "files/empty.prom").write_text("")
    return Host(sysfs, procfs.procfs, FakeClock())


async def read_all(name: str, machine: Host) -> list[Reading]:
    """Return a collector's readings: a first beat, a scrape, a second beat."""
    options = MODULES[name].Options()
    if name == "textfile":
        options = textfile.Options(directory=str(machine.sysfs.parent / "files"))
    collector = await MODULES[name].open_collector(options, machine)
    clock = machine.clock
    assert isinstance(clock, FakeClock)
    readings = []
    try:
        known = StreamIdentity(encoder="libx264", resolution="1280x720")
        feed = collector.open_feed("cam1", stated=known) if name == "ffmpeg" else None
        for number in range(3):
            if feed is not None:
                feed.feed(
                    b"frame=%d\ntotal_size=%d\nout_time_us=%d\ndup_frames=1\ndrop_frames=2\nprogress=continue\n"
                    % (number * 30, number * 1000, number * 1_000_000)
                )
            if name == "rapl":
                Powercap.move(machine.sysfs, "intel-rapl:0", number)
            scrape = number == 1 and isinstance(collector, Refreshes)
            readings.append(await (collector.refresh() if scrape else collector.read()))
            clock.advance(1.0)
    finally:
        await collector.aclose()
    return readings


@pytest.mark.parametrize("name", MODULES)
async def test_every_sample_is_of_a_declared_metric(machine: Host, name: str) -> None:
    """Every sample is of a metric that the module declares, with a value for each of its labels."""
    for reading in await read_all(name, machine):
        for sample in reading.samples:
            assert sample.metric in MODULES[name].METRICS
            assert len(sample.labels) == len(sample.metric.labels)
            assert all(isinstance(label, str) for label in sample.labels)
            float(sample.value)


@pytest.mark.parametrize("name", MODULES)
async def test_every_declared_metric_is_emitted(machine: Host, name: str) -> None:
    """A machine that has everything shows every metric that is declared: none is declared in vain."""
    emitted = {sample.metric for reading in await read_all(name, machine) for sample in reading.samples}
    assert emitted == set(MODULES[name].METRICS)


@pytest.mark.parametrize("name", MODULES)
async def test_no_series_twice(machine: Host, name: str) -> None:
    """No reading holds a series twice."""
    for reading in await read_all(name, machine):
        series = Counter((sample.metric.name, sample.labels) for sample in reading.samples)
        assert set(series.values()) == {1}


@pytest.mark.parametrize("name", FIXED)
def test_names_kinds_and_labels_are_fixed(name: str) -> None:
    """Names, kinds and labels are the ones that dashboards and alert rules were written for."""
    declared = {metric.name: (metric.kind, metric.labels) for metric in MODULES[name].METRICS}
    assert declared == FIXED[name]


def declared() -> list[tuple[str, Metric]]:
    return [(name, metric) for name, module in MODULES.items() for metric in module.METRICS]


@pytest.mark.parametrize(("name", "metric"), declared(), ids=lambda what: getattr(what, "name", what))
def test_conventions(name: str, metric: Metric) -> None:
    """Prefix: the collector's name. Help: a sentence. Counters, and they alone, end in `_total`."""
    assert metric.name.startswith(name + "_")
    assert metric.help.endswith(".")
    assert (metric.kind == "counter") is metric.name.endswith("_total")


def test_names_are_unique() -> None:
    """No two collectors declare one name."""
    names = Counter(metric.name for _, metric in declared())
    assert set(names.values()) == {1}


@pytest.mark.parametrize("name", MODULES)
async def test_meters_are_of_the_nodes_components(machine: Host, name: str) -> None:
    """Only rapl and the estimate meter here: each key once, components and sources that the node knows."""
    for reading in await read_all(name, machine):
        keys = Counter((meter.component, meter.source, meter.key) for meter in reading.meters)
        assert set(keys.values()) <= {1}
        assert {(meter.component, meter.source) for meter in reading.meters} == {
            "rapl": {("cpu", "rapl"), ("dram", "rapl")},
            "estimate": {("cpu", "estimate")},
        }.get(name, set())


@pytest.mark.parametrize("name", ["rapl", "estimate"])
async def test_refreshing_readings_say_when(machine: Host, name: str) -> None:
    """A reading whose counters are divided by time says when they were taken."""
    taken = [reading.taken for reading in await read_all(name, machine)]
    assert taken == [1000.0, 1001.0, 1002.0]
