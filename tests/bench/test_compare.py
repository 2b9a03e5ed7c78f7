"""`powerbench compare`: what changed, whether beyond chance, and what is refused."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest

from powerbench_agent.bench import cli
from powerbench_agent.bench.compare import differences, pairs, unpaired
from powerbench_agent.bench.statistics.groups import analyze
from powerbench_agent.core.results import parse_results

if TYPE_CHECKING:
    from pathlib import Path


def scenario(name: str, watts: float, block: int) -> dict[str, Any]:
    idle = name == "baseline"
    part = {"component": "cpu", "source": "rapl", "joules": watts * 60, "watts": watts}
    return {
        "name": f"{name}#{block + 1}",
        "group": name,
        "block": block,
        "type": "baseline" if idle else "single",
        "bitrate": "0k" if idle else "2500k",
        "resolution": name,
        "fps": 30,
        "energy": {
            "source": "rapl",
            "measured": True,
            "seconds": 60.0,
            "joules": watts * 60,
            "mean_watts": watts,
            "parts": [part],
        },
        "encode": None if idle else {"frames": 1800.0, "megabits": 150.0, "seconds": 60.0},
    }


def document(**groups: tuple[float, ...]) -> dict[str, Any]:
    return {
        "format": 2,
        "host": {
            "hostname": "a",
            "cpu_model": "A CPU",
            "cpus": 8,
            "kernel": "6.1",
            "machine": "x86_64",
            "governor": None,
            "turbo": True,
        },
        "ffmpeg": {"version": "5.1", "sha256": "abc"},
        "sink": "null",
        "scenarios": [
            scenario(name, watts, block)
            for name, values in groups.items()
            for block, watts in enumerate(values)
        ],
    }


BEFORE = document(baseline=(3.9, 4.0, 4.1), x=(6.9, 7.0, 7.1), y=(8.0, 8.1, 8.2), gone=(1.0, 1.1, 1.2))
AFTER = document(baseline=(3.9, 4.0, 4.1), x=(5.9, 6.0, 6.1), y=(8.0, 8.1, 8.3), come=(1.0, 1.1, 1.2))


def parsed(content: dict[str, Any]) -> Any:
    return parse_results(json.dumps(content).encode(), "run")


def written(directory: Path, *contents: dict[str, Any]) -> list[str]:
    paths = [directory / f"{letter}.json" for letter in "ab"]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(json.dumps(content))
    return [str(path) for path in paths]


def changed(where: str, key: str, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(AFTER)
    if where:
        content[where][key] = value
    else:
        content[key] = value
    return content


def test_differences_are_b_less_a() -> None:
    """The group x drew 1 W less, all of it beyond idle, and 1/30 J a frame less, with g and detectable."""
    a, b = analyze(parsed(BEFORE)), analyze(parsed(AFTER))
    changes = {pair.name: pair.changes for pair in pairs(a, b)}
    watts, delta, per_frame = changes["x"]
    assert watts.difference.delta == pytest.approx(-1)
    assert delta.difference.delta == pytest.approx(-1)
    assert per_frame.difference.delta == pytest.approx(-1 / 30)
    assert watts.difference.hedges_g == pytest.approx(-10 * 0.8)
    assert watts.difference.detectable == pytest.approx(3.717 * 0.1 * (2 / 3) ** 0.5, rel=1e-3)
    assert all(change.difference.detected for change in (watts, delta, per_frame))
    assert [len(its) for its in (changes["baseline"], changes["y"])] == [1, 3]


def test_a_difference_of_differences_is_less_sure() -> None:
    """ΔW has the spread of both baselines as well: its interval is wider than that of the watts."""
    a, b = analyze(parsed(BEFORE)), analyze(parsed(AFTER))
    watts, delta, _ = next(pair.changes for pair in pairs(a, b) if pair.name == "x")
    assert watts.difference.interval is not None
    assert delta.difference.interval is not None
    assert delta.difference.interval.low < watts.difference.interval.low


def test_a_difference_of_differences_has_no_effect_size() -> None:
    """Interval and p of ΔW compare four means; they have no g, and that of the watts stays."""
    watts, delta, _ = next(p.changes for p in pairs(analyze(parsed(BEFORE)), analyze(parsed(AFTER))))
    assert watts.difference.hedges_g is not None
    assert delta.difference.p is not None
    assert delta.difference.hedges_g is None


def with_film(content: dict[str, Any], path: str, **more: str) -> dict[str, Any]:
    filmed = copy.deepcopy(content)
    for one in filmed["scenarios"]:
        if one["type"] != "baseline":
            one |= {"input": path, **more}
    return filmed


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"input_sha256": "1" * 64}, {"input_sha256": "2" * 64}, f"SHA-256 {'1' * 12}, SHA-256 {'2' * 12}"),
        ({}, {"input_sha256": "2" * 64}, f"SHA-256 unknown, SHA-256 {'2' * 12}"),
        ({}, {}, "SHA-256 unknown, SHA-256 unknown"),
    ],
)
def test_other_films_of_one_name_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    before: dict[str, str],
    after: dict[str, str],
    said: str,
) -> None:
    """A clip of the same name with other or unknown content is not compared, except with --force."""
    a, b = with_film(BEFORE, "/a/film.mp4", **before), with_film(AFTER, "/b/film.mp4", **after)
    files = written(tmp_path, a, b)
    assert cli.main(["compare", *files]) == 1
    assert f"input film.mp4: {said}" in capsys.readouterr().err
    assert cli.main(["compare", *files, "--force"]) == 0
    assert "-1.000 ± " in capsys.readouterr().out


def test_a_film_that_was_renamed_is_the_same_one() -> None:
    """Groups of the same content are compared; another clip is another setting."""
    a = parsed(with_film(BEFORE, "/a/old.mp4", input_sha256="1"))
    b = parsed(with_film(AFTER, "/b/new.mp4", input_sha256="1"))
    assert list(differences(a, b)) == []
    assert [pair.name for pair in pairs(analyze(a), analyze(b))] == ["x", "y", "baseline"]
    other = parsed(with_film(AFTER, "/b/new.mp4", input_sha256="2"))
    assert [pair.name for pair in pairs(analyze(a), analyze(other))] == ["baseline"]


def test_groups_of_one_run_alone_are_named() -> None:
    """What has no counterpart of the same settings is compared with nothing."""
    a, b = analyze(parsed(BEFORE)), analyze(parsed(AFTER))
    assert unpaired(a, b) == ["gone (A)", "come (B)"]


def test_the_table_and_the_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0, a line a group, and for what did not change: no detectable difference."""
    assert cli.main(["compare", *written(tmp_path, BEFORE, AFTER)]) == 0
    text = capsys.readouterr().out
    assert "-1.000 ± " in text
    assert "y, Power of the host, rapl (1): no detectable difference (smallest detectable: 0." in text
    assert "gone (A), come (B)" in text


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ("host", "cpu_model", "Another CPU"),
        ("host", "cpus", 4),
        ("host", "kernel", "6.2"),
        ("host", "governor", "powersave"),
        ("host", "turbo", False),
        ("host", "machine", "aarch64"),
        ("ffmpeg", "sha256", "def"),
        ("", "sink", "embedded"),
        ("", "host", {}),
    ],
)
def test_runs_that_differ_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str, key: str, value: Any
) -> None:
    """Whatever decides a figure and differs is exit 1 and named; --force compares, and says it first."""
    files = written(tmp_path, BEFORE, changed(where, key, value))
    assert cli.main(["compare", *files]) == 1
    refused = capsys.readouterr()
    assert refused.out == ""
    assert key in refused.err
    assert "--force" in refused.err.splitlines()[0]
    assert cli.main(["compare", *files, "--force"]) == 0
    text = capsys.readouterr().out
    assert text.index("they differ in") < text.index("B - A")


def test_another_hostname_is_no_difference() -> None:
    """Two machines of a kind compare."""
    assert list(differences(parsed(BEFORE), parsed(changed("host", "hostname", "b")))) == []


def test_an_estimate_is_no_measurement() -> None:
    """Runs whose joules come from other sources are refused."""
    content = copy.deepcopy(AFTER)
    for one in content["scenarios"]:
        one["energy"]["parts"][0]["source"] = "estimate"
    assert list(differences(parsed(BEFORE), parsed(content))) == [
        "energy from: cpu rapl (1), cpu estimate (E)"
    ]


def test_old_files_are_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two files without a fingerprint are refused as unknown, however alike; forced, they have no energy."""
    old = {"scenarios": [{"name": "a", "bitrate": "2500k", "start_time": 1.0, "end_time": 2.0}]}
    files = written(tmp_path, old, old)
    assert cli.main(["compare", *files]) == 1
    assert "host: unknown, unknown" in capsys.readouterr().err
    assert cli.main(["compare", *files, "--force"]) == 1
    assert "no energy" in capsys.readouterr().err


def test_one_run_each_is_an_illustration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without repeats there is a difference, no interval, and the sentence."""
    files = written(tmp_path, document(x=(5.0,)), document(x=(6.0,)))
    assert cli.main(["compare", *files]) == 0
    text = capsys.readouterr().out
    assert "+1.000" in text
    assert "one run is an illustration, not a result" in text


@pytest.mark.parametrize(("content", "code"), [(None, 78), ("{", 78), ("", 78)])
def test_a_bad_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, code: int
) -> None:
    """A file that is not there, is cut off or empty is exit 78, in one line with its name."""
    first, second = written(tmp_path, BEFORE, AFTER)
    bad = tmp_path / "bad.json"
    if content is not None:
        bad.write_text(content)
    assert cli.main(["compare", first, str(bad)]) == code
    assert str(bad) in capsys.readouterr().err
    assert second


@pytest.mark.parametrize(
    "other",
    [{"pace": "max"}, {"sink": "srt"}, {"part": "decode"}, {"ladder": "1920x1080:5M,854x480:1M"}],
    ids=lambda other: next(iter(other)),
)
def test_what_differs_in_a_setting_is_no_pair(other: dict[str, str]) -> None:
    """Another pace, sink, part or ladder has no counterpart; the same one has."""
    changed_one, both = copy.deepcopy(AFTER), [copy.deepcopy(content) for content in (BEFORE, AFTER)]
    for content in (changed_one, *both):
        for one in content["scenarios"]:
            if one["group"] == "x":
                one.update(other)
    a, b = analyze(parsed(BEFORE)), analyze(parsed(changed_one))
    assert [pair.name for pair in pairs(a, b)] == ["y", "baseline"]
    a, b = (analyze(parsed(content)) for content in both)
    assert {pair.name for pair in pairs(a, b)} == {"x", "y", "baseline"}


def test_an_older_file_has_its_runs_sink() -> None:
    """A scenario that says no sink was sent where its file says; a URL and its kind are the same."""
    older = {**copy.deepcopy(BEFORE), "sink": "rtmp://host/live"}
    newer = {**copy.deepcopy(AFTER), "sink": "rtmp://host/live"}
    for one in newer["scenarios"]:
        one["sink"] = "rtmp"
    assert "x" in [pair.name for pair in pairs(analyze(parsed(older)), analyze(parsed(newer)))]


def test_the_megapixels_of_both_runs_are_compared() -> None:
    """J/Mpixel beside J/frame, where both runs know it."""
    known = [copy.deepcopy(content) for content in (BEFORE, AFTER)]
    for content in known:
        for one in content["scenarios"]:
            if one["encode"]:
                one["encode"]["megapixels"] = 600.0
    changes = next(pair.changes for pair in pairs(*(analyze(parsed(content)) for content in known)))
    assert changes[-1].figure == "J/Mpixel, all of the host"
    assert changes[-1].difference.delta == pytest.approx(-1 / 10)


def test_grades_that_differ_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A machine's meter and a GPU's are refused, though one source reads both; forced, it is said."""
    files = []
    for content, component in ((BEFORE, "platform"), (AFTER, "gpu")):
        other = copy.deepcopy(content)
        for one in other["scenarios"]:
            one["energy"]["parts"][0] |= {"component": component, "source": "http_json"}
            one["energy"]["source"] = "http_json"
        files.append(other)
    paths = written(tmp_path, *files)
    assert cli.main(["compare", *paths]) == 1
    assert "energy from: platform http_json (3), gpu http_json (1)" in capsys.readouterr().err
    assert cli.main(["compare", *paths, "--force"]) == 0
    assert "Power of the host, W: http_json (3) in A, http_json (1) in B" in capsys.readouterr().out


def test_force_compares_across_sinks() -> None:
    """Runs to different sinks have pairs as soon as they are compared at all."""
    a, b = parsed(BEFORE), parsed(changed("", "sink", "embedded"))
    assert "x" in [pair.name for pair in pairs(analyze(a), analyze(b))]
