"""No collector, file or plug-in shows what is not its own, or what would make a page unreadable."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from places import ROOT
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from powerbench_agent.agent import roster
from powerbench_agent.agent.daemon import declared_names
from powerbench_agent.agent.exposition import Pages
from powerbench_agent.agent.names import Names
from powerbench_agent.agent.text_format import OPENMETRICS, TEXT
from powerbench_agent.collectors import rapl, textfile
from powerbench_agent.core.model import Metric, Reading, Sample, Snapshot, State

MODULES = roster.load_modules()
NAMES = declared_names(MODULES)
ENERGY = rapl.ENERGY.sample(1234.5, "0", "package", "intel-rapl:0")
OURS = Reading([ENERGY, rapl.POWER.sample(20.0, "0", "package", "intel-rapl:0"), rapl.AVAILABLE.sample(1)])


def shown(reading: Reading, collector: str = "textfile") -> tuple[list[str], str]:
    """Return the names that are left, and what was said of the others."""
    checked = NAMES.check(collector, reading)
    said = "; ".join(trouble.error for trouble in checked.troubles)
    return [sample.metric.name for sample in checked.samples], said


DECLARED = sorted(
    {metric.name for module in MODULES.values() for metric in module.METRICS}
    - {metric.name for metric in textfile.METRICS}
)
FORGERIES = [(name, kind) for name in DECLARED for kind in ("gauge", "unknown")]
FORGERIES += [(name, "counter") for name in DECLARED if name.endswith("_total")]


@pytest.mark.parametrize(("name", "kind"), FORGERIES)
def test_nobody_shows_anothers_metric(name: str, kind: Any) -> None:
    """A file's sample under a declared name is left out, whatever its type, though its owner is absent."""
    left, said = shown(Reading([Metric(name, kind, "Forged.").sample(1)]))
    assert left == []
    assert name in said


@pytest.mark.parametrize(
    "name",
    [
        "powerbench_node_power_watts",
        "powerbench_node_energy_joules_total",
        "powerbench_collector_up",
        "powerbench_anything_at_all",
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "process_cpu_seconds",
        "docker_container_energy_joules_total",
        "ffmpeg_stream_energy_joules",
        "rapl_energy_joules",
        "rapl_energy_joules_created",
        "rapl_energy_joules_total",
        "nvidia_gpu_power_draw_watts",
    ],
)
def test_names_of_the_agent_and_their_other_spellings_are_its_own(name: str) -> None:
    """The node's, the agent's and the process's metrics, and what their counters take up in OpenMetrics."""
    left, said = shown(Reading([Metric(name, "unknown", "Forged.").sample(1)]))
    assert (left, name in said) == ([], True)


RULES = [
    yaml.safe_load(file.read_text()) for file in sorted((ROOT / "compose/prometheus/rules").glob("*.yml"))
]
RECORDED = {
    rule["record"]
    for content in RULES
    for group in content["groups"]
    for rule in group["rules"]
    if ":" in rule.get("record", "")
}


@pytest.mark.parametrize("name", sorted(RECORDED | {"powerbench:threshold:own"}))
def test_nobody_shows_what_the_rules_record(name: str) -> None:
    """A file could set thresholds, or make an alert fire."""
    left, said = shown(Reading([Metric(name, "gauge", "Forged.").sample(1)]))
    assert (left, name in said) == ([], True)


@pytest.mark.parametrize("name", ["up", "scrape_duration_seconds", "scrape_samples_scraped", "ALERTS"])
def test_nobody_shows_what_the_server_writes(name: str) -> None:
    """A file with `up 0` would make its agent look down."""
    left, said = shown(Reading([Metric(name, "gauge", "Forged.").sample(0)]))
    assert (left, name in said) == ([], True)


@pytest.mark.parametrize(
    "name",
    [
        "wall_watts",
        "uptime_seconds",
        "scrape_errors",
        "host_load",
        "instance:node_cpu:rate5m",
        "rapl_power",
        "rapl_power_watts_max",
        "my_rapl_power_watts",
        "nvidia_smi_fan_speed_ratio",
        "process_count",
        "node_hwmon_temp_celsius",
        "job:power:sum",
        "powerbenchmark_score",
        "docker_images",
    ],
)
def test_a_neighbours_name_is_free(name: str) -> None:
    """What nobody declares may be shown, however similar it looks."""
    assert shown(Reading([Metric(name, "gauge", "Another's.").sample(1)])) == ([name], "")


def test_a_collector_shows_what_it_declares() -> None:
    """Every metric of every collector passes, and a reading that is sound is passed on as it is."""
    for collector, module in MODULES.items():
        samples = [metric.sample(1, *("x" for _ in metric.labels)) for metric in module.METRICS]
        reading = Reading(samples)
        assert NAMES.check(collector, reading) is reading
        for sample in samples:  # as a plug-in's would be
            assert Names({collector: module.METRICS}).check(collector, Reading([sample])).troubles == ()


def test_the_rest_of_a_reading_is_shown_and_the_trouble_has_a_remedy() -> None:
    """A forged series among others costs itself alone, and is said once, with its owner."""
    wall = Metric("wall_watts", "gauge", "At the plug.")
    forged = Metric("rapl_power_watts", "gauge", "Forged.")
    reading = Reading([wall.sample(1), forged.sample(2), forged.sample(3)])
    checked = NAMES.check("textfile", reading)
    assert checked.samples == [wall.sample(1)]
    (trouble,) = checked.troubles
    assert trouble.part == "names and values"
    assert "2 samples" in trouble.error
    assert "'rapl_power_watts' is a metric of rapl" in trouble.error
    assert trouble.remedy


ODD = [
    Metric("", "gauge", "x"),
    Metric("a b", "gauge", "x"),
    Metric("a-b", "gauge", "x"),
    Metric("1a", "gauge", "x"),
    Metric("a\n", "gauge", "x"),
    Metric("größe", "gauge", "x"),
    Metric("\udcff", "gauge", "x"),
    Metric("a{}", "gauge", "x"),
    Metric(7, "gauge", "x"),  # type: ignore[arg-type]
    Metric("a", "histogram", "x"),  # type: ignore[arg-type]
    Metric("a", "", "x"),  # type: ignore[arg-type]
    Metric("a", "counter", "x"),
    Metric("_total", "counter", "x"),
    Metric("a", "gauge", None),  # type: ignore[arg-type]
    Metric("a", "gauge", "x", ("__name__",)),
    Metric("a", "gauge", "x", ("__x",)),
    Metric("a", "gauge", "x", ("a:b",)),
    Metric("a", "gauge", "x", ("",)),
    Metric("a", "gauge", "x", ("a", "a")),
    Metric("a", "gauge", "x", (7,)),  # type: ignore[arg-type]
]
GAUGE, TOTAL = Metric("odd_value", "gauge", "x", ("a",)), Metric("odd_events_total", "counter", "x", ("a",))
ODD_SAMPLES = [
    *(Sample(metric, tuple("x" for _ in metric.labels), 1) for metric in ODD),
    Sample(GAUGE, (), 1),
    Sample(GAUGE, ("x", "y"), 1),
    Sample(GAUGE, (None,), 1),  # type: ignore[arg-type]
    Sample(GAUGE, (b"x",), 1),  # type: ignore[arg-type]
    Sample(GAUGE, ("x",), None),  # type: ignore[arg-type]
    Sample(GAUGE, ("x",), "much"),  # type: ignore[arg-type]
    Sample(GAUGE, ("x",), 10**400),
    Sample(TOTAL, ("x",), -1),
    Sample(TOTAL, ("x",), float("nan")),
]


def page(reading: Reading, form: Any) -> bytes:
    state = State(reading, 1.8e9, 50.0, 0.001, failures=0, last_success=1.8e9)
    ours = State(OURS, 1.8e9, 50.0, 0.001, failures=0, last_success=1.8e9)
    states = MappingProxyType({"rapl": ours, "plug_in": state})
    return Pages(process=list).page(Snapshot(1.8e9, states), {"rapl", "plug_in"}, form)


@pytest.mark.parametrize("sample", ODD_SAMPLES, ids=repr)
def test_an_odd_sample_of_a_plug_in_is_left_out(sample: Sample) -> None:
    """Whatever a plug-in emits, the page is what it would be without."""
    checked = NAMES.check("plug_in", Reading([GAUGE.sample(1, "good"), sample]))
    assert checked.samples == [GAUGE.sample(1, "good")]
    assert len(checked.troubles) == 1
    for form in (TEXT, OPENMETRICS):
        assert page(checked, form) == page(Reading([GAUGE.sample(1, "good")]), form)


PARTS = st.lists(
    st.sampled_from(
        ["rapl", "energy", "joules", "x", "total", "created", "bucket", "sum", "count", "info", "le"]
    ),
    min_size=1,
    max_size=4,
).map("_".join)
FOREIGN = st.builds(
    Metric,
    name=PARTS | st.text(max_size=5),
    kind=st.sampled_from(["gauge", "counter", "unknown"]),
    help=st.text(max_size=5),
    labels=st.sampled_from([(), ("a",), ("le",), ("quantile", "a"), ("__name__",), ("x", "x")]),
)
SAMPLES = st.lists(
    st.builds(
        lambda metric, text, value: Sample(metric, tuple(text for _ in metric.labels), value),
        FOREIGN,
        st.text(max_size=5),
        st.floats(),
    ),
    max_size=6,
)


@given(SAMPLES)
@example([Metric("x", "gauge", "\udcff").sample(1)])
@example([Metric("x_total", "counter", "").sample(1), Metric("x_created", "gauge", "").sample(1)])
@example([Metric("x", "gauge", "").sample(1), Metric("x_total", "counter", "").sample(1)])
def test_no_collector_can_break_or_change_the_page_of_another(samples: list[Sample]) -> None:
    """Any samples at all: the strict parsers read the page, and our series are on it once, unchanged."""
    checked = NAMES.check("plug_in", Reading(samples))
    for form, parse in ((TEXT, parse_text), (OPENMETRICS, parse_openmetrics)):
        text = page(checked, form).decode()
        found = [sample for family in parse(text) for sample in family.samples]
        energy = [sample for sample in found if sample.name.startswith("rapl_energy_joules")]
        assert [(sample.labels["path"], sample.value) for sample in energy] == [("intel-rapl:0", 1234.5)]
        series = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in found]
        assert len(series) == len(set(series))


LINES = st.sampled_from(
    [
        "rapl_power_watts 1",
        'rapl_energy_joules_total{package="0",zone="package",path="intel-rapl:0"} 9',
        "# TYPE rapl_energy_joules counter",
        "rapl_energy_joules_created 1",
        "# TYPE rapl gauge",
        'powerbench_collector_up{collector="rapl"} 0',
        "# TYPE x counter",
        "x_total NaN",
        "x_created 1",
        'x{a="1"} 1',
        'x{a="1"} 2',
        '{"odd name"} 1',
        '{"x", a="b"} 1',
        '{__name__="rapl_power_watts"} 1',
        'x{__name__="rapl_power_watts"} 1',
        'x{a="\\n# TYPE y gauge\\n"} 1',
        'x{a="\u2028\r\x85"} 1',
        'x 1 # {trace_id="1"} 1',
        "# HELP x \\n# EOF",
        "# EOF",
        "x 1e400",
        "x 0x10",
        "x 1_000",
    ]
)
CONTENT = st.binary(max_size=60) | st.lists(LINES | st.text(max_size=8), max_size=6).map(
    lambda lines: "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
)


@given(CONTENT)
def test_no_bytes_in_a_file_can_change_the_rest_of_the_page(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    """Whatever a file holds, our lines stay byte for byte, and the strict parsers read the page."""
    file = tmp_path_factory.getbasetemp() / "any.prom"
    file.write_bytes(content)
    try:
        _, text = textfile.read_bounded(str(file), 1_000_000)
        reading = Reading(list(textfile.parse(text, file.name)))
    except textfile.UnusableFile:
        reading = Reading([])
    checked = NAMES.check("textfile", reading)
    for form, parse in ((TEXT, parse_text), (OPENMETRICS, parse_openmetrics)):
        found, alone = page(checked, form), page(Reading([]), form)
        list(parse(found.decode()))
        ours = [line for line in alone.splitlines() if b"rapl" in line]
        assert [line for line in found.splitlines() if b"rapl" in line and b"x{" not in line] == ours
