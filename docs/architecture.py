"""Draws docs/architecture.svg: the floors with every file on them, and the ways of the data.

The floors are read from the tree: run `.venv/bin/python docs/architecture.py` after adding or moving a file.
The ways are written down here.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap
from typing import NamedTuple
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
PICTURE = Path(__file__).with_suffix(".svg")

WIDTH = 1000
MARGIN = 20
GAP = 12
LINE = 17  # pixels from one line of text to the next
CHARACTER = 6.9  # pixels, of a wide character in the text's size; wrapping errs on the safe side
HEAD = 30  # pixels that a room's title takes
BOLD = 8.2  # likewise, in bold

# What belongs together within a floor; files that no group names are shown under "also".
GROUPS = {
    "core": {
        "types": ["model", "options", "host"],
        "energy and results": [
            "counters",
            "results",
            "scores",
            "grades",
            "bounded_file",
            "prometheus_windows",
            "windows",
        ],
        "the kernel's files": [
            "procfs",
            "cpu_time",
            "sysfs",
            "hwmon",
            "powercap",
            "processes",
            "process_tree",
            "ports",
        ],
        "text and threads": [
            "progress",
            "identity",
            "logged",
            "lines",
            "labels",
            "metric_names",
            "terminal",
            "worker",
            "parts",
            "token_file",
        ],
    },
    "agent": {
        "starts": ["cli", "daemon", "config", "roster", "systemd", "log", "log_writer"],
        "measures": ["scheduler", "troubles", "names", "node", "attribution"],
        "serves": [
            "http",
            "exposition",
            "access",
            "listen",
            "connections",
            "rejections",
            "sending",
            "bucket",
        ],
    },
    "collectors": {"one file each": ["host", "estimate", "textfile"]},
    "bench": {
        "every verb": ["cli", "flags", "exits", "files", "warnings", "nearest"],
        "one file each": ["compare", "doctor"],
    },
}
FLOORS = {
    "bench": "the benchmark: runs streams, knows the agent through HTTP alone",
    "agent": "the daemon: reads, keeps the latest, serves",
    "collectors": "one module a source; none knows another",
    "core": "types, arithmetic, parsers; imports nothing else of ours",
}


class Step(NamedTuple):
    """A stop on a way: where, and what happens there."""

    place: str
    what: str


WAYS = {
    "read → snapshot → render → serve": [
        Step("collectors/rapl/collector.py", "read(): the kernel's counters become a Reading"),
        Step("agent/scheduler.py", "swaps in a new immutable Snapshot"),
        Step("agent/exposition.py", "renders a fragment once a Reading, joins them to a page"),
        Step("agent/http.py", "GET /metrics, /api/v1/snapshot, /health"),
    ],
    "ingest → state → snapshot": [
        Step("agent/http.py", "POST /ingest: FFmpeg's progress, a feed per connection"),
        Step("core/progress.py", "bytes become reports; no I/O"),
        Step("collectors/ffmpeg/collector.py", "keeps the state; read() looks at it"),
        Step("agent/scheduler.py", "from here on like any other Reading"),
    ],
    "the node's sum and its shares, in one step every second": [
        Step("agent/scheduler.py", "hands over the latest Readings and the CPUs' time"),
        Step("agent/node.py", "adds up Meters that do not overlap"),
        Step("agent/attribution.py", "shares the sum by Claims and Uses; the parts add up"),
        Step("agent/scheduler.py", "publishes both as the collector “node”"),
    ],
    "scenario → run → record → judge → report": [
        Step("bench/plan/scenario.py", "what is asked, checked before anything runs"),
        Step("bench/run/runner.py", "load/ streams, meter/ reads the agent at the window's edges"),
        Step("bench/run/record.py", "the results file, by the schema in core/results.py"),
        Step("bench/statistics/groups.py", "repeats become groups with intervals"),
        Step("bench/analyze/cli.py", "tables, CSV, JSON, Parquet"),
    ],
}

STYLE = """
    text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, "DejaVu Sans", sans-serif; }
    .title { font-size: 19px; font-weight: 600; }
    .name { font-weight: 600; }
    .middle { text-anchor: middle; }
    .ground { fill: #ffffff; stroke: #d0d7de; }
    .ink { fill: #1f2328; }
    .pale { fill: #59636e; }
    .arrow { stroke: #59636e; stroke-width: 1.5; fill: none; marker-end: url(#tip); }
    .dashed { stroke-dasharray: 5 4; }
    .tip { fill: #59636e; }
    .room { fill: #ffffff; stroke: #afb8c1; }
    .bench { fill: #fff1e5; stroke: #d4772c; }
    .agent { fill: #ddf4ff; stroke: #2a7ab8; }
    .collectors { fill: #dafbe1; stroke: #2f8a45; }
    .core { fill: #eeebfa; stroke: #7757b8; }
    .outside { fill: #f6f8fa; stroke: #818b98; }
"""
DARK = """
      .ground { fill: #0d1117; stroke: #3d444d; }
      .ink { fill: #f0f6fc; }
      .pale { fill: #aab4be; }
      .arrow { stroke: #aab4be; }
      .tip { fill: #aab4be; }
      .room { fill: #161b22; stroke: #4a535e; }
      .bench { fill: #3a2413; stroke: #d4772c; }
      .agent { fill: #10293d; stroke: #4a9bdb; }
      .collectors { fill: #12301b; stroke: #46a35c; }
      .core { fill: #271f3d; stroke: #9a7ddb; }
      .outside { fill: #21262d; stroke: #6e7781; }
"""


class Room(NamedTuple):
    """A folder, or some files of a floor: its title and the files' names."""

    title: str
    files: list[str]

    def lines(self, width: float) -> list[str]:
        """Return the names, wrapped to a room of this width."""
        return wrap(
            ", ".join(self.files),
            int((width - 20) / CHARACTER),
            break_on_hyphens=False,
            break_long_words=False,
        )

    def height(self, width: float) -> float:
        """Return the height that a room of this width needs."""
        return HEAD + LINE * len(self.lines(width)) + 8


class Drawing:
    """SVG elements, and the places where they go."""

    def __init__(self) -> None:
        self.elements: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        """Draw a rectangle of this class."""
        size = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
        self.elements.append(f'<rect class="{kind}" rx="6" {size}/>')

    def text(self, x: float, y: float, text: str, kind: str = "ink") -> None:
        """Write one line of text; `y` is its baseline."""
        self.elements.append(f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(text)}</text>')

    def arrow(self, *points: tuple[float, float], kind: str = "arrow") -> None:
        """Draw an arrow through these points."""
        path = " L".join(f"{x:g} {y:g}" for x, y in points)
        self.elements.append(f'<path class="{kind}" d="M{path}"/>')

    def document(self, height: float) -> str:
        """Return the whole picture."""
        tip = '<path class="tip" d="M0 0 L8 4 L0 8 z"/>'
        size = 'markerWidth="8" markerHeight="8" refX="8" refY="4" orient="auto" markerUnits="userSpaceOnUse"'
        dark = f"    @media (prefers-color-scheme: dark) {{{DARK}    }}\n"
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}"',
            '     role="img" aria-labelledby="what">',
            "<!-- Written by docs/architecture.py; edit that. -->",
            '<title id="what">The floors of powerbench, with their files, and the ways of its data</title>',
            f"<style>{STYLE}{dark}</style>",
            f'<defs><marker id="tip" {size}>{tip}</marker></defs>',
            f'<rect class="ground" rx="10" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:g}"/>',
            *self.elements,
            "</svg>",
        ]
        return "\n".join(lines) + "\n"


def modules(folder: Path) -> list[str]:
    """Return the names of a folder's modules."""
    return sorted(path.name for path in folder.glob("*.py") if path.name != "__init__.py")


def rooms(floor: str) -> list[Room]:
    """Return a floor's rooms: its folders, and its single files in groups."""
    top = ROOT / floor
    left = modules(top)
    found = []
    for title, stems in GROUPS[floor].items():
        files = [f"{stem}.py" for stem in stems if f"{stem}.py" in left]
        left = [name for name in left if name not in files]
        if files:
            found.append(Room(title, files))
    for folder in sorted(path.parent for path in top.rglob("__init__.py") if path.parent != top):
        files = modules(folder)
        if files:
            found.append(Room(f"{folder.name}/", files))
    if left:
        found.append(Room("also", left))
    return found


def rows_of(rooms: list[Room], columns: int) -> list[list[Room]]:
    """Return the rooms, row by row."""
    return [rooms[start : start + columns] for start in range(0, len(rooms), columns)]


class Area(NamedTuple):
    """Where a floor goes, and in how many columns its rooms stand."""

    x: float
    y: float
    width: float
    columns: int


def draw_floor(drawing: Drawing, floor: str, area: Area) -> float:
    """Draw a floor in this area, return its height."""
    room_width = (area.width - GAP * (area.columns + 1)) / area.columns
    rows = rows_of(rooms(floor), area.columns)
    heights = [max(room.height(room_width) for room in row) for row in rows]
    height = 36 + sum(heights) + GAP * len(heights)
    drawing.box(area.x, area.y, area.width, height, floor)
    drawing.text(area.x + GAP, area.y + 23, f"{floor}/", "ink name")
    drawing.text(area.x + GAP + BOLD * (len(floor) + 2), area.y + 23, FLOORS[floor], "pale")
    top = area.y + 36
    for row, row_height in zip(rows, heights, strict=True):
        for column, room in enumerate(row):
            x = area.x + GAP + column * (room_width + GAP)
            drawing.box(x, top, room_width, row_height, "room")
            drawing.text(x + 10, top + 20, room.title, "ink name")
            for number, line in enumerate(room.lines(room_width)):
                drawing.text(x + 10, top + HEAD + 10 + number * LINE, line)
        top += row_height + GAP
    return height


def draw_floors(drawing: Drawing, y: float) -> float:
    """Draw all floors from here down, return where they end."""
    full = WIDTH - 2 * MARGIN
    left, between, gap = 370, 84, 38
    right = full - left - between
    beside = MARGIN + left + between
    y += draw_floor(drawing, "bench", Area(MARGIN, y, full, 5))
    arrow_down(drawing, MARGIN + left / 2, y, gap)
    y += gap
    agent = draw_floor(drawing, "agent", Area(MARGIN, y, left, 2))
    collectors = draw_floor(drawing, "collectors", Area(beside, y, right, 3))
    drawing.arrow((MARGIN + left, y + 100), (beside, y + 100), kind="arrow dashed")
    for number, word in enumerate(["roster.py", "loads them", "by name"]):
        drawing.text(MARGIN + left + between / 2, y + 60 + LINE * number, word, "pale middle")
    below = y + max(agent, collectors) + gap
    arrow_down(drawing, MARGIN + left / 2, y + agent, below - y - agent)
    arrow_down(drawing, beside + right / 2, y + collectors, below - y - collectors)
    return below + draw_floor(drawing, "core", Area(MARGIN, below, full, 4))


def arrow_down(drawing: Drawing, x: float, y: float, height: float) -> None:
    """Draw an arrow from one floor to the one below it."""
    drawing.arrow((x, y), (x, y + height))
    drawing.text(x + 10, y + height / 2 + 5, "imports", "pale")


def heading(step: Step, width: float) -> list[str]:
    """Return where a step is, in as many lines as it needs."""
    if len(step.place) * BOLD <= width - 20:
        return [step.place]
    room, _, file = step.place.rpartition("/")
    return [f"{room}/", file]


def draw_way(drawing: Drawing, title: str, steps: list[Step], y: float) -> float:
    """Draw a way from left to right, each step in its floor's colour; return where it ends."""
    between = 24
    width = (WIDTH - 2 * MARGIN - between * (len(steps) - 1)) / len(steps)
    headings = [heading(step, width) for step in steps]
    bodies = [wrap(step.what, int((width - 16) / CHARACTER)) for step in steps]
    lines = max(len(head) + len(body) for head, body in zip(headings, bodies, strict=True))
    height = 18 + LINE * lines
    drawing.text(MARGIN, y + 16, title, "ink name")
    y += 26
    for number, (step, head, body) in enumerate(zip(steps, headings, bodies, strict=True)):
        x = MARGIN + number * (width + between)
        drawing.box(x, y, width, height, step.place.partition("/")[0])
        for row, line in enumerate(head):
            drawing.text(x + 10, y + 21 + row * LINE, line, "ink name")
        for row, line in enumerate(body, start=len(head)):
            drawing.text(x + 10, y + 23 + row * LINE, line)
        if number:
            drawing.arrow((x - between, y + height / 2), (x, y + height / 2))
    return y + height + 18


class Place(NamedTuple):
    """A box of the last picture: its lines, where it stands, its class."""

    lines: list[str]
    x: float
    y: float
    width: float
    kind: str

    def draw(self, drawing: Drawing) -> None:
        """Draw it, its lines centred; the first one is its name."""
        height = 24 + 19 * len(self.lines)
        drawing.box(self.x, self.y, self.width, height, self.kind)
        for number, line in enumerate(self.lines):
            style = "ink middle" if number else "ink middle name"
            drawing.text(self.x + self.width / 2, self.y + 26 + 19 * number, line, style)


def draw_reads(drawing: Drawing, y: float) -> float:
    """Draw who reads when, return where it ends."""
    middle, bottom = y + 20, y + 135
    places = [
        Place(["hardware and kernel", "RAPL, GPUs, /proc, cgroups"], MARGIN, middle, 210, "outside"),
        Place(["agent/scheduler.py", "the only one that reads"], 400, middle, 200, "agent"),
        Place(["Snapshot", "immutable: the latest Readings"], 720, middle, 260, "agent"),
        Place(["a scrape, or ?fresh=1"], MARGIN, bottom, 210, "outside"),
        Place(["agent/bucket.py"], 400, bottom, 200, "agent"),
        Place(["pages, API, health", "never touch hardware"], 720, bottom, 260, "outside"),
    ]
    for place in places:
        place.draw(drawing)
    drawing.arrow((230, middle + 31), (400, middle + 31))
    drawing.text(315, middle + 21, "read(), at each interval", "pale middle")
    drawing.text(315, middle + 49, "refresh(), when asked", "pale middle")
    drawing.arrow((600, middle + 31), (720, middle + 31))
    drawing.text(660, middle + 21, "swaps in", "pale middle")
    drawing.arrow((230, bottom + 22), (400, bottom + 22))
    drawing.arrow((500, bottom), (500, middle + 62))
    drawing.text(510, bottom - 22, "a token: refresh() first", "pale")
    drawing.text(500, bottom + 62, "burst of 5, 2 a second; without a token: the last reading", "pale middle")
    drawing.arrow((850, middle + 62), (850, bottom))
    return bottom + 82


def draw() -> str:
    """Return the picture."""
    drawing = Drawing()
    drawing.text(MARGIN, 36, "Floors: an arrow is an import, and none goes up", "ink title")
    y = draw_floors(drawing, 52) + 42
    drawing.text(MARGIN, y, "Ways of the data", "ink title")
    y += 12
    for title, steps in WAYS.items():
        y = draw_way(drawing, title, steps, y)
    y += 24
    drawing.text(MARGIN, y, "Who reads when", "ink title")
    return drawing.document(draw_reads(drawing, y + 8))


if __name__ == "__main__":
    PICTURE.write_text(draw())
