"""Results files of every format are read; of every other file it is said what is wrong, and where."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import CAPTURES

from powerbench_agent.core.results import (
    FORMAT,
    BadResults,
    ResultsFile,
    baselines_of,
    groups,
    parse_results,
)

REASONS = {"half_written", "broken", "foreign", "newer"}


def parse(content: str | bytes) -> ResultsFile:
    return parse_results(content.encode() if isinstance(content, str) else content, "stem")


def verdict(content: str | bytes) -> tuple[str, str]:
    """Return (reason, what) of a file that holds no results."""
    with pytest.raises(BadResults) as caught:
        parse(content)
    return caught.value.reason, str(caught.value)


def capture(name: str) -> ResultsFile:
    return parse((CAPTURES / f"results_{name}.json").read_bytes())


def with_scenario(**keys: Any) -> str:
    return json.dumps({"scenarios": [{"name": "a", "bitrate": "1M", **keys}]})


def test_file_without_format() -> None:
    """The predecessor's file has windows and settings but no energy; its null means unknown."""
    found = capture("format0")
    assert (found.format, found.run_id) == (0, "stem")
    idle, test = found.scenarios
    assert (idle.type, idle.streams, idle.bitrates, idle.encoder) == ("baseline", 0, (), "")
    assert (test.type, test.streams, test.bitrates, test.encoder) == ("single", 1, ("2500k",), "h264")
    assert (test.start_time, test.end_time, test.energy) == (1767606872.25, 1767607172.25, None)


def test_format_1() -> None:
    """Energy by component, what the encoder did and the difference come as they were written."""
    found = capture("format1")
    assert (found.format, found.run_id) == (1, "test_results_20260203_101112")
    idle, test = found.scenarios
    assert (idle.is_baseline, test.is_baseline) == (True, False)
    assert test.energy is not None
    assert [(p.component, p.joules) for p in test.energy.parts] == [("cpu", 2340), ("dram", 360)]
    assert test.encode is not None
    assert (test.encode.quality, test.encode.scores) == (None, [])
    assert any("picture scores are not shown" in warning for warning in test.warnings)
    assert baselines_of([test], found.scenarios) == [idle]


def test_format_2() -> None:
    """Repeats share a group, each has its own block's baseline, and what failed is in no group."""
    found = capture("format2")
    assert (found.format, found.rates.price_per_kwh, found.rates.gco2e_per_kwh) == (2, 0.25, 300)
    by_name = groups(found.scenarios)
    assert {name: len(windows) for name, windows in by_name.items()} == {"baseline": 2, "abr": 2}
    own = [baselines_of([window], found.scenarios) for window in by_name["abr"]]
    assert own == [[found.scenarios[0]], [found.scenarios[2]]]


def test_format_3() -> None:
    """Pace, sink, ladder and what was delivered are read; a sink that is not said is the file's, by kind."""
    ladder = {"name": "a", "ladder": "1920x1080:5M,854x480:1M", "pace": "2x", "sink": "srt", "streams": 2}
    ladder |= {"bitrate": "5000k+1000k", "bitrates": ["5000k+1000k"] * 2, "outputs": [{}, {}]}
    ladder["encode"] = {"seconds": 60.0, "megapixels": 5.0, "speed": 2.0, "cpu_seconds": {"encoder": 3.0}}
    plain = {"name": "b", "bitrate": "1M", "encode": {"seconds": 60.0, "container": "flv"}}
    content = {"format": 3, "sink": "rtmp://host/live", "scenarios": [ladder, plain]}
    one, other = parse(json.dumps(content)).scenarios
    assert (one.asked_speed, one.sink, one.ladder, one.streams) == (2.0, "srt", ladder["ladder"], 2)
    assert one.encode is not None
    assert (one.encode.megapixels, one.encode.speed, one.encode.encoder_cpu_seconds) == (5.0, 2.0, 3.0)
    assert (one.one_stream_for, one.warnings) == (0, ())
    assert (other.asked_speed, other.sink, other.ladder) == (1.0, "rtmp", "")
    assert other.encode is not None
    assert (other.encode.counted, other.encode.megapixels) == ("flv", None)


@pytest.mark.parametrize(
    ("form", "kind", "outputs", "lost"),
    [
        (0, None, [{}, {}, {}], 3),
        (1, "single", [{}, {}], 2),
        (2, "single", [{}, {}], 2),
        (2, "single", [{}], 0),
        (2, "single", None, 0),
        (2, "single", "two", 0),
        (2, "multi", [{}, {}], 0),
        (3, "single", [{}, {}], 0),
    ],
)
def test_an_old_ladder_was_one_stream(form: int, kind: str | None, outputs: Any, lost: int) -> None:
    """What its encode did is not read, and a warning says why; other scenarios keep theirs."""
    scenario = {"name": "a", "bitrate": "1M", "type": kind, "outputs": outputs, "one_stream_for": 9}
    scenario["encode"] = {"seconds": 60.0, "frames": 1800.0}
    (found,) = parse(json.dumps({"format": form, "scenarios": [scenario]})).scenarios
    assert (found.one_stream_for, found.encode is None) == (lost, bool(lost))
    told = f"its ladder of {lost} outputs was encoded as one stream by the version that wrote it"
    assert [warning.partition(":")[0] for warning in found.warnings] == [told] * bool(lost)


# Python 3.13 names the comma itself, the versions before it what follows.
TRAILING_COMMA = "line 2, column 18:" if sys.version_info >= (3, 13) else "line 3, column 1:"


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ('{"scenarios": [}', "line 1, column 16:"),
        ('{\n  "scenarios": [],\n}', TRAILING_COMMA),
        ('{"scenarios": []} x', "line 1, column 19:"),
        ("{\n  scenarios: []}", "line 2, column 3:"),
        ('{"scenarios": ["a\x01"]}', "line 1, column 18:"),
        ('{"a": "NaN \\" NaN",\n "scenarios": [{"name": "a",\n "fps": NaN}]}', "line 3, column 9: NaN"),
        ('{"scenarios": [{"fps": -Infinity}]}', "line 1, column 24: -Infinity"),
    ],
    ids=range(7),
)
def test_broken_file(content: str, where: str) -> None:
    """Text that is not JSON is broken, and the place is named by line and column."""
    reason, what = verdict(content)
    assert reason == "broken"
    assert what.startswith(where)


@pytest.mark.parametrize("name", ["format0", "format1", "format2"])
def test_file_that_is_cut_off(name: str) -> None:
    """A file that ends too early is half written, wherever it ends."""
    content = json.dumps(json.loads((CAPTURES / f"results_{name}.json").read_text()), indent=1)
    reasons = {verdict(content[:length])[0] for length in range(len(content))}
    assert reasons == {"half_written"}


def test_file_that_is_cut_off_in_a_character() -> None:
    """A file that ends within a character is half written, too; one with a wrong byte is broken."""
    assert verdict('{"scenarios": [{"name": "ä'.encode()[:-1])[0] == "half_written"
    assert verdict(b'{"scenarios": [{"name": "\xff"}]}')[0] == "broken"


@pytest.mark.parametrize(
    "content",
    [
        "12",
        '"scenarios"',
        "[]",
        "{}",
        "null",
        '{"scenarios": {}}',
        '{"scenarios": [5]}',
        '{"scenarios": [[]]}',
        '{"scenarios": [{}]}',
        '{"scenarios": [{"name": 5}]}',
        *(f'{{"scenarios": [], "format": {form}}}' for form in ("-1", "1.5", "2.0", "true", '"2"', "null")),
        with_scenario(energy=5),
        with_scenario(energy={"source": "rapl"}),
        with_scenario(fps="fast"),
        with_scenario(start_time=True),
        with_scenario(start_time=10**400),
    ],
)
def test_foreign_file(content: str) -> None:
    """JSON that holds no results is foreign."""
    assert verdict(content)[0] == "foreign"


def test_foreign_file_is_told_where() -> None:
    """What is not as it should be is named by its path."""
    assert "$.scenarios[0].fps" in verdict(with_scenario(fps="fast"))[1]


@pytest.mark.parametrize("scenarios", [[], [{"name": 5}], [{"unheard": "of"}]])
def test_newer_file(scenarios: list[Any]) -> None:
    """A newer format says so, whatever has become of its keys."""
    reason, what = verdict(json.dumps({"format": FORMAT + 1, "scenarios": scenarios}))
    assert (reason, what) == ("newer", f"its format {FORMAT + 1} is newer than {FORMAT}; update powerbench")


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"scenarios": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"a":' * 100_000,
        '{"scenarios": [{"name": "a", "encode": {"seconds": 1, "quality": {"v": '
        + "[" * 20_000
        + "]" * 20_000
        + "}}}]}",
        '{"scenarios": [], "a": ' + "9" * 10_000 + "}",
    ],
    ids=range(5),
)
def test_bomb(content: str) -> None:
    """Nesting or a number beyond all bounds is a verdict, and nothing else."""
    assert verdict(content)[0] in REASONS


def test_other_keys_are_passed_over() -> None:
    """What others have added stays unread."""
    assert parse(with_scenario(mine={"a": [1]})).scenarios[0].name == "a"


def test_the_last_of_two_equal_keys_counts() -> None:
    """A key that comes twice has its last value, as everywhere in JSON's world."""
    assert parse('{"scenarios": [], "scenarios": [{"name": "z"}]}').scenarios[0].name == "z"


def test_a_byte_order_mark_is_no_fault() -> None:
    """A file that an editor has saved with a mark is read."""
    assert parse("\ufeff" + with_scenario()).scenarios[0].name == "a"


def test_names_that_come_twice_are_one_group() -> None:
    """Without named groups, scenarios of one name are repeats."""
    found = parse(json.dumps({"scenarios": [{"name": "a", "bitrate": "1M"}] * 2}))
    assert {name: len(windows) for name, windows in groups(found.scenarios).items()} == {"a": 2}


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@given(json_like | st.fixed_dictionaries({"scenarios": json_like}), st.integers(0, 200))
def test_any_document(document: Any, length: int) -> None:
    """Any document, cut anywhere, is results or a verdict, never another error."""
    for content in (json.dumps(document), json.dumps(document)[:length]):
        try:
            parse(content)
        except BadResults as bad:
            assert bad.reason in REASONS  # noqa: PT017 - a verdict is one of two good answers


@given(st.binary(max_size=60))
def test_any_bytes(content: bytes) -> None:
    """Any bytes are results or a verdict, never another error."""
    try:
        parse(content)
    except BadResults as bad:
        assert bad.reason in REASONS  # noqa: PT017 - a verdict is one of two good answers
