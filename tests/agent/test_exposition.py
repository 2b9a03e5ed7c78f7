"""Snapshots to pages: both formats, hostile labels, duplicates, caching, a golden page."""

from __future__ import annotations

import gzip
import platform
import shutil
import subprocess
import tracemalloc
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import GOLDEN
from prometheus_client import core
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from structlog.testing import capture_logs
from trees import add_up

from powerbench_agent.agent import __version__
from powerbench_agent.agent.exposition import (
    AGENT_METRICS,
    LIMIT_HITS,
    MAX_PAGES,
    SERIES_DROPPED,
    Pages,
    choose_format,
)
from powerbench_agent.agent.node import Node
from powerbench_agent.agent.text_format import OPENMETRICS, TEXT, Format, group, render
from powerbench_agent.collectors import rapl
from powerbench_agent.collectors.ffmpeg import collector as ffmpeg
from powerbench_agent.core.model import Meter, Metric, Reading, Sample, Snapshot, State

if TYPE_CHECKING:
    from pathlib import Path

PLACES = Metric("places", "gauge", "Where.", ("a", "b"))
EVENTS = Metric("events_total", "counter", "How many.", ("a",))
OLD = Metric("old_name", "unknown", "Historic.")


def state(*samples: Sample, meters: tuple[Meter, ...] = ()) -> State:
    reading = Reading(samples, meters, taken=50.0)
    return State(reading, time=1.8e9, monotonic=50.0, duration=0.002, failures=0, last_success=1.8e9)


def snapshot(**states: State) -> Snapshot:
    return Snapshot(1.8e9, MappingProxyType(states))


def page(shown: Snapshot, form: Format = TEXT, names: set[str] | None = None) -> str:
    return Pages(process=list).page(shown, names or set(shown.states), form).decode()


def lines_of(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


# -- the whole page ----------------------------------------------------------------------------------


def a_machine() -> Snapshot:
    """One socket with a dram zone and psys, a stream with a hostile name, a sensor that is down."""
    socket0, dram, psys = (
        ("0", "package", "intel-rapl:0"),
        ("0", "dram", "intel-rapl:0:0"),
        ("", "psys", "intel-rapl:1"),
    )
    meters = (Meter("cpu", "rapl", "intel-rapl:0", 1234.5), Meter("dram", "rapl", "intel-rapl:0:0", 99.25))
    measured = state(
        rapl.ENERGY.sample(1234.5, *socket0),
        rapl.POWER.sample(123.45, *socket0),
        rapl.WRAPS.sample(1, *socket0),
        rapl.RESETS.sample(0, *socket0),
        rapl.LIMIT.sample(125.0, *socket0, "long_term"),
        rapl.ENERGY.sample(99.25, *dram),
        rapl.WRAPS.sample(0, *dram),
        rapl.RESETS.sample(0, *dram),
        rapl.ENERGY.sample(2000.0, *psys),
        rapl.ZONES.sample(3),
        rapl.AVAILABLE.sample(1),
        meters=meters,
    )
    name = 'cam "1"\\\n{é}'
    streams = state(
        ffmpeg.REJECTED.sample(2, "forbidden"),
        ffmpeg.ACTIVE.sample(1, name),
        ffmpeg.RUN_FRAMES.sample(250, name),
        ffmpeg.FRAMES.sample(1250, name),
        ffmpeg.FPS.sample(25.0, name),
        ffmpeg.BITRATE.sample(2500.5, name),
    )
    node = Node()
    add_up(node, [Reading([], [meter._replace(joules=0.0) for meter in meters], taken=40.0)])
    assert measured.reading is not None
    node_state = State(add_up(node, [measured.reading]), 1.8e9, 50.0, 0.0001, 0, 1.8e9)
    down = State(None, 1.8e9, 50.0, 1.0, failures=3, last_success=1.8e9 - 60, error="no answer within 1 s")
    states = {"rapl": measured, "ffmpeg": streams, "drm": down, "node": node_state}
    return Snapshot(1.8e9, MappingProxyType(states), MappingProxyType({"nvml": "no driver"}))


@pytest.mark.parametrize(("form", "file"), [(TEXT, "page.prom"), (OPENMETRICS, "page.openmetrics")])
def test_the_whole_page_is_the_golden_one(tmp_path: Path, form: Format, file: str) -> None:
    """A fixed snapshot renders to the golden file byte for byte, but for the two versions in it."""
    shown = page(a_machine(), form)
    for version, placeholder in ((platform.python_version(), "PYTHON"), (__version__, "VERSION")):
        shown = shown.replace(f'"{version}"', f'"{placeholder}"')
    actual = tmp_path / file
    actual.write_bytes(shown.encode())
    golden = (GOLDEN / file).read_bytes().decode()
    assert shown == golden, f"where the change is meant: cp {actual} {GOLDEN / file}"


def test_promtool_finds_nothing_to_complain_about() -> None:
    """Prometheus's own linter takes the page without a word."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("NOT CHECKED: promtool is not on the PATH; it comes with Prometheus")
    text = page(a_machine())
    found = subprocess.run(
        [promtool, "check", "metrics"], input=text.encode(), capture_output=True, check=False
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")


def test_the_openmetrics_page_parses() -> None:
    """A strict OpenMetrics parser reads every sample of the page back."""
    families = {family.name: family for family in parse_openmetrics(page(a_machine(), OPENMETRICS))}
    assert [s.value for s in families["rapl_energy_joules"].samples] == [1234.5, 99.25, 2000.0]
    assert families["ffmpeg_total_frames"].type == "unknown"
    assert families["ffmpeg_fps"].samples[0].labels == {"stream": 'cam "1"\\\n{é}'}


def test_no_declared_name_can_clash_in_openmetrics() -> None:
    """Families differ also where OpenMetrics takes `_total` off a counter's name."""
    names = [
        metric.name.removesuffix("_total") for metric in (*AGENT_METRICS, *rapl.METRICS, *ffmpeg.METRICS)
    ]
    assert len(names) == len(set(names))


# -- labels, types -----------------------------------------------------------------------------------


def test_a_label_without_a_value_is_left_out() -> None:
    """A label with an empty value is left out; a series without labels has no braces."""
    text = page(snapshot(x=state(PLACES.sample(1, "", "there"), PLACES.sample(2, "", ""))))
    assert lines_of(text, "places") == ['places{b="there"} 1.0', "places 2.0"]


def test_a_counter_has_its_suffix_in_both_formats() -> None:
    """`_total` is on the sample always, and on the family in the old format alone."""
    shown = snapshot(x=state(EVENTS.sample(3, "a")))
    assert "# TYPE events_total counter" in page(shown)
    assert "# TYPE events counter" in page(shown, OPENMETRICS)
    for form in (TEXT, OPENMETRICS):
        assert 'events_total{a="a"} 3.0' in page(shown, form).splitlines()


def test_an_unknown_type_is_untyped_in_the_old_format() -> None:
    """The old format has no word `unknown`."""
    shown = snapshot(x=state(OLD.sample(3)))
    assert "# TYPE old_name untyped" in page(shown)
    assert "# TYPE old_name unknown" in page(shown, OPENMETRICS)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), unique=True))
def test_any_label_value_survives_both_formats(texts: list[str]) -> None:
    """Quotes, backslashes, line ends, NUL, emoji: what a parser reads back is what went in."""
    shown = snapshot(x=state(*(EVENTS.sample(1, text) for text in texts)))
    for form, parse in ((TEXT, parse_text), (OPENMETRICS, parse_openmetrics)):
        found = [
            sample.labels["a"]
            for family in parse(page(shown, form))
            for sample in family.samples
            if sample.name == "events_total"
        ]
        assert found == texts


@pytest.mark.parametrize("form", [TEXT, OPENMETRICS])
def test_a_label_that_is_not_text_does_not_break_the_page(form: Format) -> None:
    """A lone surrogate, out of a file's name, is mended, and two that come to the same are one series."""
    text = page(
        snapshot(x=state(EVENTS.sample(1, "\udcfe"), EVENTS.sample(2, "\udcff"), OLD.sample(3))), form
    )
    assert lines_of(text, "events_total") == ['events_total{a="?"} 1.0']
    assert lines_of(text, "old_name") == ["old_name 3.0"]


# -- duplicates --------------------------------------------------------------------------------------


def test_a_series_is_shown_once_and_its_double_counted() -> None:
    """The first of two equal series stays; the other is dropped and counted."""
    text = page(snapshot(x=state(EVENTS.sample(1, "a"), EVENTS.sample(2, "b"), EVENTS.sample(9, "a"))))
    assert lines_of(text, "events_total") == ['events_total{a="a"} 1.0', 'events_total{a="b"} 2.0']
    assert lines_of(text, SERIES_DROPPED.name) == [f"{SERIES_DROPPED.name} 1.0"]


def test_a_family_of_two_collectors_is_one_family() -> None:
    """Two collectors that share a family appear under one TYPE line, their double series once."""
    same = Metric("places", "gauge", "Where.", ("b", "a"))  # another order is the same series
    text = page(
        snapshot(
            x=state(PLACES.sample(1, "1", "2")), y=state(same.sample(5, "2", "1"), same.sample(6, "3", "1"))
        )
    )
    assert lines_of(text, "# TYPE places") == ["# TYPE places gauge"]
    assert lines_of(text, "places") == ['places{a="1",b="2"} 1.0', 'places{a="1",b="3"} 6.0']
    assert lines_of(text, SERIES_DROPPED.name) == [f"{SERIES_DROPPED.name} 1.0"]


def test_a_family_keeps_the_type_it_had_first() -> None:
    """A sample of the same family with another type is dropped: a page has one TYPE a family."""
    other = Metric("places", "unknown", "Elsewhere.")
    text = page(snapshot(x=state(PLACES.sample(1, "1", "2")), y=state(other.sample(5))))
    assert lines_of(text, "places") == ['places{a="1",b="2"} 1.0']
    assert lines_of(text, SERIES_DROPPED.name) == [f"{SERIES_DROPPED.name} 1.0"]


@pytest.mark.parametrize("form", [TEXT, OPENMETRICS])
@pytest.mark.parametrize(
    "metric",
    [
        Metric("powerbench_collector_up", "gauge", "Not the agent's.", ("collector",)),
        Metric("powerbench_build_info", "gauge", "Not the agent's."),
        Metric("process_cpu_seconds_total", "counter", "Not the agent's."),
    ],
    ids=lambda metric: metric.name,
)
def test_what_the_agent_says_of_itself_cannot_be_said_by_a_file(form: Format, metric: Metric) -> None:
    """A collector's sample in a family of the agent's own makes no second family on the page."""
    foreign = metric.sample(0, *("x" for _ in metric.labels))
    own = core.Metric("process_cpu_seconds", "CPU time.", "counter")
    own.add_sample("process_cpu_seconds_total", {}, 7.0)
    text = Pages(process=lambda: [own]).page(snapshot(x=state(foreign)), {"x"}, form).decode()
    family = metric.name if form is TEXT else metric.name.removesuffix("_total")
    assert len(lines_of(text, f"# TYPE {family} ")) == 1
    series = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(series) == len(set(series))


def test_every_limit_that_cut_something_is_one_metric() -> None:
    """An option is named with its collector, so that two max_streams are two; connections are there at 0."""
    readings = {name: replace(state(), limit_hits={"max_streams": 3}) for name in ("ffmpeg", "nginx_rtmp")}
    text = Pages({"connection_limit": 2}, process=list).page(snapshot(**readings), {"ffmpeg"}, TEXT).decode()
    assert lines_of(text, f"{LIMIT_HITS.name}{{") == [
        f'{LIMIT_HITS.name}{{limit="connections"}} 2.0',
        f'{LIMIT_HITS.name}{{limit="ffmpeg.max_streams"}} 3.0',
    ]


def test_what_is_dropped_is_named_once_in_the_log() -> None:
    """The alert on dropped series sends its reader to the log; a page a second is no line a second."""
    pages = Pages(process=list)
    other = Metric("places", "unknown", "Elsewhere.")
    with capture_logs() as logs:
        for value in (1, 2):
            x = state(OLD.sample(value), OLD.sample(value), PLACES.sample(1, "1", "2"))
            pages.page(snapshot(x=x, y=state(other.sample(value))), {"x", "y"}, TEXT)
    said = [(line["event"], line["metric"]) for line in logs]
    assert said == [("series left off the page", OLD.name), ("series left off the page", "places")]
    assert "*.prom" in logs[0]["remedy"]


def test_the_names_in_the_log_are_bounded() -> None:
    """A file may have new names each time; the count goes on."""
    pages = Pages(process=list)
    many = [Metric(f"name_{number}", "gauge", "One of many.") for number in range(150)]
    with capture_logs() as logs:
        text = pages.page(
            snapshot(x=state(*(metric.sample(1) for metric in many for _ in "12"))), {"x"}, TEXT
        ).decode()
    assert len(logs) == 100
    assert lines_of(text, SERIES_DROPPED.name) == [f"{SERIES_DROPPED.name} 150.0"]


def test_drops_are_counted_once_a_snapshot() -> None:
    """However many pages, formats and encodings show it, a snapshot's dropped series count once."""
    pages = Pages(process=list)
    for expected in (1, 2):
        shown = snapshot(x=state(OLD.sample(1), OLD.sample(2)))
        for form in (TEXT, OPENMETRICS):
            for gzipped in (False, True):
                pages.page(shown, {"x"}, form, gzipped=gzipped)
        text = pages.page(shown, {"x"}, TEXT).decode()
        assert lines_of(text, SERIES_DROPPED.name) == [f"{SERIES_DROPPED.name} {expected}.0"]


def test_a_page_without_the_doubles_hides_no_drops() -> None:
    """A filtered page that comes first does not keep the whole page's drops from being counted."""
    pages = Pages(process=list)
    shown = snapshot(x=state(OLD.sample(1), OLD.sample(2)), y=state(EVENTS.sample(1, "a")))
    pages.page(shown, {"y"}, TEXT)
    text = pages.page(shown, {"x", "y"}, TEXT).decode()
    assert lines_of(text, SERIES_DROPPED.name) == [f"{SERIES_DROPPED.name} 1.0"]


FAMILIES = st.sampled_from([PLACES, EVENTS, OLD, Metric("places_total", "counter", "x", ("a", "b"))])


@given(
    st.lists(st.tuples(FAMILIES, st.sampled_from(["", "1", "2"]), st.floats())),
    st.sampled_from([TEXT, OPENMETRICS]),
)
def test_no_page_ever_holds_a_series_twice(samples: list[tuple[Metric, str, float]], form: Format) -> None:
    """Any samples at all: each family and each series once, and shown + dropped = given."""
    families, dropped = group(
        metric.sample(value, *(text for _ in metric.labels)) for metric, text, value in samples
    )
    text = render(families, form).decode()
    series = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    types = lines_of(text, "# TYPE")
    assert len(series) == len(set(series))
    assert len(types) == len(set(types))
    assert len(series) + dropped.total() == len(samples)


# -- what is on a page -------------------------------------------------------------------------------


def test_a_collector_that_is_down_shows_its_state_and_no_samples() -> None:
    """Up 0, its failures and its last success; nothing of what it measures."""
    down = State(None, 1.8e9, 50.0, 1.0, failures=3, last_success=None, error="x")
    text = page(snapshot(x=down))
    assert 'powerbench_collector_up{collector="x"} 0.0' in text
    assert 'powerbench_collector_failures_total{collector="x"} 3.0' in text
    assert lines_of(text, "powerbench_collector_last_success") == []


def test_a_page_shows_the_named_collectors_alone() -> None:
    """Neither samples nor state of a collector that the port does not serve; the build always."""
    text = page(snapshot(x=state(OLD.sample(1)), y=state(EVENTS.sample(1, "a"))), names={"x"})
    assert "old_name 1.0" in text
    assert "events" not in text
    assert 'collector="y"' not in text
    assert lines_of(text, "powerbench_build_info")


def test_an_empty_openmetrics_page_is_still_one() -> None:
    """EOF stands at the end, once."""
    text = page(snapshot(), OPENMETRICS)
    assert text.endswith("# EOF\n")
    assert text.count("# EOF") == 1
    assert "# EOF" not in page(snapshot())


def test_the_agents_own_process_is_on_the_page() -> None:
    """process_* come from prometheus_client as everywhere."""
    text = Pages().page(snapshot(), set(), TEXT).decode()
    assert lines_of(text, "process_resident_memory_bytes")


# -- remembering -------------------------------------------------------------------------------------


def test_a_page_is_rendered_once_a_snapshot() -> None:
    """The same page of the same snapshot is the same object; another snapshot's is not."""
    pages = Pages(process=list)
    shown = snapshot(x=state(OLD.sample(1)))
    first = pages.page(shown, {"x"}, TEXT)
    assert pages.page(shown, {"x"}, TEXT) is first
    pages.page(shown, {"x"}, OPENMETRICS)
    assert pages.page(shown, {"x"}, TEXT) is first
    assert b"old_name 2.0" in pages.page(snapshot(x=state(OLD.sample(2))), {"x"}, TEXT)


def test_names_and_formats_have_pages_of_their_own() -> None:
    """What is remembered for one filter or format is never served for another."""
    pages = Pages(process=list)
    shown = snapshot(x=state(OLD.sample(1)), y=state(EVENTS.sample(1, "a")))
    asked = [
        (names, form, z) for names in ("x", "y", "xy") for form in (TEXT, OPENMETRICS) for z in (False, True)
    ]
    assert len({pages.page(shown, set(names), form, gzipped=z) for names, form, z in asked}) == len(asked)


def test_gzip_holds_the_same_page() -> None:
    """Compression changes the encoding and nothing else."""
    pages = Pages(process=list)
    shown = a_machine()
    names = set(shown.states)
    packed = pages.page(shown, names, TEXT, gzipped=True)
    assert gzip.decompress(packed) == pages.page(shown, names, TEXT)
    assert pages.page(shown, names, TEXT, gzipped=True) is packed


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/plain;version=0.0.4", TEXT),
        ("application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5", OPENMETRICS),
        ("application/openmetrics-text", OPENMETRICS),
    ],
)
def test_the_format_is_what_accept_asks_for(accept: str, form: Format) -> None:
    """OpenMetrics for who names it, text for everyone else."""
    assert choose_format(accept) is form


@pytest.mark.parametrize("form", [TEXT, OPENMETRICS])
def test_an_untyped_line_does_not_double_a_counter(form: Format) -> None:
    """A text file's untyped events_total is the counter's name: dropped and counted, in both formats."""
    untyped = Metric("events_total", "unknown", "From a file.", ("a",))
    own = Metric("process_cpu_seconds_total", "unknown", "From a file.")
    file = state(untyped.sample(999, "x"), own.sample(7))
    shown = snapshot(ours=state(EVENTS.sample(5, "x")), file=file)
    pages = Pages()
    text = pages.page(shown, {"ours", "file"}, form).decode()
    assert lines_of(text, "events_total{") == ['events_total{a="x"} 5.0']
    assert len(lines_of(text, "process_cpu_seconds_total ")) == 1
    assert len(lines_of(text, "# TYPE events")) == 1
    assert lines_of(text, "powerbench_series_dropped_total ") == ["powerbench_series_dropped_total 2.0"]


def test_few_pages_are_kept() -> None:
    """Of n collectors there are 2^n combinations, and anyone may ask for each: the oldest give way."""
    pages = Pages(process=list)
    shown = snapshot(**{f"c{number}": state() for number in range(8)})
    tracemalloc.start()
    try:
        for number in range(1, 256):
            names = {f"c{bit}" for bit in range(8) if number >> bit & 1}
            text = pages.page(shown, names, TEXT).decode()
            assert len(lines_of(text, "powerbench_collector_up{")) == len(names)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 4 * MAX_PAGES * len(text), "the kept pages, and not thousands"
    assert pages.page(shown, names, TEXT) is pages.page(shown, names, TEXT)
