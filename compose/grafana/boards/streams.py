"""The streams that are being encoded: how fast, how well, at what power; and what nginx-rtmp relays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from boards.layout import Row, board, choice, matching
from boards.panels import BAD, GOOD, THIRD, WARN, bars, graph, stat, states
from boards.queries import ESTIMATED, FFMPEG_STEP, MEASURED, STREAM, Query, apart, gained, of, once, rate

if TYPE_CHECKING:
    from grafana_foundation_sdk.models import dashboard

NAMED = "{{host}} {{stream}}"
ENERGY = "ffmpeg_stream_energy_joules_total"
REAL_TIME = 0.98  # of the smallest speed of a stream that keeps up; the benchmark's own bound
MISSING = "no stream"
UNKNOWN = "process not known"
STATES = {0: ("ended", "text"), 1: ("live", GOOD), 2: ("silent", BAD), 3: ("stalled", BAD)}


def watts(*sources: str) -> str:
    """Return the attributed watts of each stream by component, counted once."""
    return once(rate(ENERGY, STREAM, *sources), "stream", "container", "component", "source")


def per_frame() -> tuple[Query, Query]:
    """Return joules per frame by stream, all components: without an estimate in them, and with one."""
    frames = once(rate("ffmpeg_frames_total", STREAM), "stream")
    whole = f"sum by (host, stream) ({watts()}) / ({frames} > 0)"
    estimates = f"on (host, stream) {rate(ENERGY, STREAM, ESTIMATED)}"
    return (
        Query(f"{whole} unless {estimates}", NAMED),
        Query(f"{whole} and {estimates}", f"{NAMED} (estimate)"),
    )


def now() -> Row:
    """Return the row of current figures."""
    active = f"sum(max by (host, stream) ({of('ffmpeg_stream_active', STREAM)}))"
    frames = f"sum(max by (host, stream) ({rate('ffmpeg_frames_total', STREAM)}))"
    return Row(
        "Now",
        [
            stat(
                "Active streams",
                "Streams that sent a report in the last 5 s and have not ended.",
                "none",
                Query(active, "active"),
                nothing=MISSING,
            ),
            stat(
                "Stalled streams",
                "Streams without a new frame or new output for 5 s, or whose reports stopped without an end.",
                "none",
                Query(f"sum(max by (host, stream) ({of('ffmpeg_stream_stalled', STREAM)}))", "stalled"),
                base=GOOD,
                steps=((1, BAD),),
                nothing=MISSING,
            ),
            stat(
                "Slowest stream",
                "The lowest speed of any stream: if it stays below 1, it falls behind real time. Measured.",
                "suffix:x",
                Query(f"min({of('ffmpeg_speed', STREAM)})", "speed"),
                base=BAD,
                steps=((REAL_TIME, GOOD),),
                decimals=2,
                nothing="no running stream",
            ),
            stat(
                "Dropped frames",
                "Frames that the selected streams dropped over the selected time range. Measured.",
                "short",
                Query(
                    f"sum(max by (host, stream) ({gained('ffmpeg_frames_dropped_total', STREAM)}))", "dropped"
                ),
                base=GOOD,
                steps=((1, WARN),),
                decimals=0,
                nothing=MISSING,
            ),
            stat(
                "Power of streams",
                "The selected streams' share of the measured power, attributed by CPU time and GPU use, "
                "without estimates.",
                "watt",
                Query(f"sum({watts(MEASURED)})", "measured, attributed"),
                decimals=2,
                nothing=UNKNOWN,
            ),
            stat(
                "Frames per second",
                "Frames encoded per second, all selected streams together. Measured.",
                "suffix: fps",
                Query(frames, "fps"),
                step=FFMPEG_STEP,
                decimals=1,
                nothing=MISSING,
            ),
        ],
    )


def flow() -> Row:
    """Return the row of what the encoders do."""
    return Row(
        "Encoding",
        [
            states(
                "State of each stream",
                "Live: reports arrive. Stalled: reports without a new frame or output. Silent: reports "
                "stopped without an end. Ended: the run has ended.",
                STATES,
                Query(
                    f"{of('ffmpeg_stream_active', STREAM)} + 2 * {of('ffmpeg_stream_stalled', STREAM)}", NAMED
                ),
                nothing=MISSING,
            ),
            graph(
                "Speed",
                "Seconds of media encoded per second, over the last 5 s. 1 is real time; below the line at "
                "0.98 a stream does not keep up. Measured.",
                "suffix:x",
                Query(of("ffmpeg_speed", STREAM), NAMED),
                step=FFMPEG_STEP,
                lines=((REAL_TIME, GOOD),),
                nothing=MISSING,
            ),
            graph(
                "Frames per second by stream",
                "Frames encoded per second, over the last 5 s. Measured.",
                "suffix: fps",
                Query(of("ffmpeg_fps", STREAM), NAMED),
                size=THIRD,
                step=FFMPEG_STEP,
                nothing=MISSING,
            ),
            graph(
                "Bitrate",
                "Bits written per second, over the last 5 s. Measured, which is not the requested bitrate.",
                "bps",
                Query(f"1000 * {of('ffmpeg_bitrate_kbps', STREAM)}", NAMED),
                size=THIRD,
                step=FFMPEG_STEP,
                nothing=MISSING,
            ),
            graph(
                "Frames dropped and duplicated",
                "Frames per second that FFmpeg dropped or duplicated to keep its frame rate. Measured.",
                "suffix: fps",
                Query(rate("ffmpeg_frames_dropped_total", STREAM), f"{NAMED} dropped"),
                Query(rate("ffmpeg_frames_duplicated_total", STREAM), f"{NAMED} duplicated"),
                size=THIRD,
                step=FFMPEG_STEP,
                nothing=MISSING,
            ),
        ],
    )


def energy() -> Row:
    """Return the row of what streams cost."""
    return Row(
        "Power and energy of streams",
        [
            graph(
                "Power of each stream",
                "Each stream's share of its host's power, attributed by CPU time and GPU use, not measured "
                "itself. Labelled estimate if the host's power is an estimate.",
                "watt",
                *apart(f"sum by (host, stream) ({watts('SOURCE')})", NAMED),
                size=THIRD,
                step=FFMPEG_STEP,
                nothing=UNKNOWN,
            ),
            graph(
                "Energy per frame",
                "Attributed joules of a stream, all components, divided by the frames that it encoded; a gap "
                "while it does not encode any. Labelled estimate if any part of it is not measured. "
                "Without the idle energy of its host, which the dashboard Fleet includes.",
                "joule",
                *per_frame(),
                size=THIRD,
                step=FFMPEG_STEP,
                nothing=UNKNOWN,
            ),
            graph(
                "Power of streams by component",
                "The same shares by component: CPU, memory, GPU, with the source in brackets.",
                "watt",
                Query(
                    f"sum by (host, stream, component, source) ({watts()})",
                    f"{NAMED} {{{{component}}}} ({{{{source}}}})",
                ),
                size=THIRD,
                step=FFMPEG_STEP,
                nothing=UNKNOWN,
            ),
            bars(
                "Runs after the first",
                "How often each stream was restarted over the selected time range. Measured.",
                "none",
                Query(gained("ffmpeg_stream_restarts_total", STREAM), NAMED),
                size=(12, 7),
                decimals=0,
                nothing=MISSING,
            ),
            graph(
                "Time since the last report",
                "Seconds since FFmpeg's last report of each stream; an ended stream disappears after 5 "
                "minutes.",
                "s",
                Query(f"time() - {of('ffmpeg_stream_last_update_timestamp_seconds', STREAM)}", NAMED),
                size=(12, 7),
                step=FFMPEG_STEP,
                nothing=MISSING,
            ),
        ],
    )


def relay() -> Row:
    """Return the row of nginx-rtmp's streams, which have names of their own."""
    missing = "the page of nginx-rtmp is not read"
    named = "{{host}} {{application}}/{{stream}}"
    return Row(
        "nginx-rtmp",
        [
            graph(
                "Received by nginx-rtmp",
                "Bits per second that publishers send, by stream. Measured by nginx. Here streams are "
                "named by their keys, so the selection of streams above does not apply.",
                "bps",
                Query(f"8 * {rate('nginx_rtmp_stream_bytes_in_total')}", named),
                size=THIRD,
                nothing=missing,
            ),
            graph(
                "Sent by nginx-rtmp",
                "Bits per second sent to all players of a stream. Measured by nginx.",
                "bps",
                Query(f"8 * {rate('nginx_rtmp_stream_bytes_out_total')}", named),
                size=THIRD,
                nothing=missing,
            ),
            graph(
                "Clients of nginx-rtmp",
                "Connections of each stream, both publishers and players. Measured by nginx.",
                "none",
                Query(of("nginx_rtmp_stream_clients"), named),
                size=THIRD,
                nothing=missing,
            ),
        ],
    )


def build() -> dashboard.Dashboard:
    """Return the dashboard."""
    return board(
        "streams",
        "Streams",
        "Streams that FFmpeg encodes: speed, rate, stalls, drops, and what each costs in watts and joules "
        "per frame; and what nginx-rtmp relays.",
        [now(), flow(), energy(), relay()],
        [choice("stream", "Stream", matching("ffmpeg_stream_active", "stream"))],
    )
