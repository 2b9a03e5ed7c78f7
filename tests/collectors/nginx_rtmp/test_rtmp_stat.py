"""The stat page of nginx-rtmp: what it says, and that nothing else is taken for one."""

from __future__ import annotations

import re
import tracemalloc
from dataclasses import replace
from xml.sax.saxutils import escape

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from places import CAPTURES

from powerbench_agent.collectors.nginx_rtmp.stat import (
    MAX_APPLICATIONS,
    MAX_DEPTH,
    MAX_TEXT,
    BadPage,
    Codec,
    Limits,
    Page,
    RtmpStream,
    parse_stat,
)

LIVE = (CAPTURES / "nginx_stat_live.xml").read_bytes()
IDLE = (CAPTURES / "nginx_stat_idle.xml").read_bytes()
LIMITS = Limits(max_streams=1000, max_name_length=200)
H264_AAC = Codec("H264", "High", "3.1", "1280x720", "30", "AAC", "LC", "1", "48000")


def page(*sections: str, head: str = "<uptime>9</uptime>") -> bytes:
    return f"<rtmp>{head}<server>{''.join(sections)}</server></rtmp>".encode()


def live(*streams: str, application: str = "live") -> str:
    return (
        f"<application><name>{application}</name><live>{''.join(streams)}"
        f"<nclients>99</nclients></live></application>"
    )


def stream(name: str = "cam", inside: str = "", clients: int = 1) -> str:
    return (
        f"<stream><name>{name}</name><time>1500</time><bytes_in>70</bytes_in><bytes_out>30</bytes_out>"
        f"{inside}<nclients>{clients}</nclients></stream>"
    )


def client(number: int, dropped: int) -> str:
    return f"<client><id>{number}</id><dropped>{dropped}</dropped><active/></client>"


def parse(body: bytes, limits: Limits = LIMITS) -> Page:
    return parse_stat(body, limits)


# -- what a page says --------------------------------------------------------------------------------


def test_a_live_page() -> None:
    """The captured page's figures come out as they stand on it, milliseconds as seconds."""
    found = parse(LIVE)
    assert (found.version, found.rtmp_version, found.pid, found.uptime) == ("1.22.1", "1.1.4", 22285, 15)
    assert (found.accepted, found.bytes_in, found.bytes_out) == (3, 6607228, 2801581)
    assert (found.counts, found.ignored) == ({"live": 2}, 0)
    assert found.streams == {
        ("live", "cam1"): RtmpStream(1, 1, True, 3293831, 2793025, 12.873, {}, H264_AAC),  # noqa: FBT003 - active
        ("live", "cam2"): RtmpStream(1, 1, True, 3295616, 0, 12.861, {}, H264_AAC),  # noqa: FBT003 - likewise
    }


def test_an_idle_page() -> None:
    """An application without streams is told, with none."""
    found = parse(IDLE)
    assert (found.streams, found.counts, found.accepted) == ({}, {"live": 0}, 0)


@pytest.mark.parametrize("body", [LIVE, IDLE], ids=["live", "idle"])
def test_a_page_cut_anywhere_is_no_page(body: bytes) -> None:
    """A page that ends early, at any offset, is refused: half a page is never taken for the whole."""
    whole = body.rstrip()
    for end in range(len(whole)):
        with pytest.raises(BadPage):
            parse(whole[:end])
    assert parse(whole) == parse(body)


def test_what_is_not_said_is_not_known() -> None:
    """A field that the page does not have is None or "", never 0; sizes of 0 are not known either."""
    meta = "<meta><video><width>0</width><height>0</height><frame_rate>0</frame_rate></video></meta>"
    found = parse(page(live(f"<stream><name>cam</name>{meta}<nclients>1</nclients></stream>")))
    assert found.streams == {("live", "cam"): RtmpStream(clients=1)}
    assert (found.version, found.pid, found.accepted, found.bytes_in) == ("", None, None, None)


def test_a_clock_that_was_set_back_is_no_reason_to_refuse() -> None:
    """A count below 0 is not known; the rest of the page counts."""
    found = parse(page(live(stream()), head="<uptime>-3600</uptime><naccepted>4</naccepted>"))
    assert (found.uptime, found.accepted, len(found.streams)) == (None, 4, 1)


VIDEO = "<meta><video><width>1280</width><height>720</height><frame_rate>{}</frame_rate></video></meta>"


@pytest.mark.parametrize(
    ("said", "label"),
    [("30.000", "30"), ("29.970", "29.97"), ("23.976023976", "23.976"), ("60", "60"), ("0.000", "")],
)
def test_a_frame_rate_may_have_decimals(said: str, label: str) -> None:
    """Forks give the rate as 30.000: the label is the number as people write it, and nothing is odd."""
    found = parse(page(live(stream(inside=VIDEO.format(said)))))
    assert found.streams["live", "cam"].codec == Codec(resolution="1280x720", fps=label)
    assert found.odd == {}


@pytest.mark.parametrize("said", ["30/1", "N/A", "nan", "1e3", "٣", "9" * 21, "0x1e", "30 fps", "--1", "."])
def test_an_odd_label_costs_itself_alone(said: str) -> None:
    """What is not a number is left out and noted; the stream and its other labels stay."""
    found = parse(page(live(stream(inside=VIDEO.format(said)))))
    assert found.streams["live", "cam"] == RtmpStream(
        1, 0, bytes_in=70, bytes_out=30, seconds=1.5, codec=Codec(resolution="1280x720")
    )
    assert found.odd == {"video frame_rate": said[:40]}


@pytest.mark.parametrize(
    ("tag", "field", "left"),
    [
        ("time", "seconds", None),
        ("bytes_in", "bytes_in", None),
        ("bytes_out", "bytes_out", None),
        ("nclients", "clients", 0),
    ],
)
@pytest.mark.parametrize(("said", "is_odd"), [("?", True), ("", False), ("-5", False)])
def test_an_odd_figure_costs_itself_alone(
    tag: str, field: str, left: int | None, said: str, *, is_odd: bool
) -> None:
    """A stream's figure that is empty, negative or not a number is not known; its others are."""
    odd = re.sub(f"<{tag}>[0-9]+</{tag}>", f"<{tag}>{said}</{tag}>", stream())
    good = parse(page(live(stream()))).streams["live", "cam"]
    found = parse(page(live(odd, stream("cam2"))))
    assert found.streams["live", "cam"] == replace(good, **{field: left})  # type: ignore[arg-type]
    assert found.streams["live", "cam2"] == good
    assert found.odd == ({tag: said} if is_odd else {})


def test_an_odd_head_costs_its_figure_alone() -> None:
    """The same for the server's own figures: streams are shown whatever the page says of its worker."""
    head = "<uptime>9.0</uptime><pid>me</pid><naccepted>4</naccepted><bytes_in>1k</bytes_in>"
    found = parse(page(live(stream()), head=head))
    assert (found.uptime, found.pid, found.accepted, found.bytes_in) == (9, None, 4, None)
    assert (len(found.streams), set(found.odd)) == (1, {"pid", "bytes_in"})


@pytest.mark.parametrize("said", ["N/A", "9" * 21, "٣", "1d 2h", "&lt;b&gt;", ""])
def test_an_odd_uptime_costs_itself_alone(said: str) -> None:
    """The same for what a page is recognised by: its root is known."""
    found = parse(page(live(stream()), head=f"<uptime>{said}</uptime>"))
    assert (found.uptime, len(found.streams)) == (None, 1)
    assert found.odd == ({"uptime": said.replace("&lt;", "<").replace("&gt;", ">")} if said else {})


def test_a_page_without_a_head() -> None:
    """Streams are shown whether or not the page says who serves them."""
    assert len(parse(page(live(stream()), head="")).streams) == 1


@pytest.mark.parametrize(
    "root", ["nginx-rtmp", "RTMP", "rtmp xmlns='https://example.org/rtmp'", "r:rtmp xmlns:r='a'"]
)
def test_a_root_of_another_name(root: str) -> None:
    """A fork's page is recognised by its head."""
    name = root.split(maxsplit=1)[0]
    renamed = LIVE.replace(b"<rtmp>", f"<{root}>".encode()).replace(b"</rtmp>", f"</{name}>".encode())
    assert parse(renamed) == parse(LIVE)


@pytest.mark.parametrize("said", [b"\x01", b"\xff\xfe", b"caf\xe9", b"\x1b[2J", b"\xed\xa0\x80", b"\0"])
def test_what_a_client_says_of_itself_does_no_harm(said: bytes) -> None:
    """A player may send any bytes as its version, and nginx passes them on."""
    odd = LIVE.replace(b"<flashver>", b"<flashver>" + said)
    assert parse(odd) == parse(LIVE)


def test_a_blank_line_before_the_page() -> None:
    """As a proxy's template may leave one."""
    assert parse(b"\n  " + LIVE) == parse(LIVE)


def test_what_is_not_known_does_no_harm() -> None:
    """Elements that no version had so far are passed over, also where they hold known names."""
    more = "<quality><bytes_in>x</bytes_in></quality><bytes_video>?</bytes_video>"
    found = parse(page(live(stream(inside=more)), head=f"<uptime>9</uptime>{more}"))
    assert (found.streams["live", "cam"].bytes_in, found.odd) == (70, {})


def test_the_page_of_http_flv() -> None:
    """nginx-http-flv-module's page, under another root, says the same as nginx-rtmp's."""
    body = LIVE.replace(b"<rtmp>", b"<http-flv>").replace(b"</rtmp>", b"</http-flv>")
    body = body.replace(b"nginx_rtmp_version", b"nginx_http_flv_version")
    body = body.replace(b"<frame_rate>30</frame_rate>", b"<frame_rate>30.000</frame_rate>")
    assert body.count(b"http-flv") == 2
    assert body.count(b"30.000") == 2
    assert parse(body) == parse(LIVE)


def test_one_name_in_two_server_blocks_is_added_up() -> None:
    """Two streams of one application's name and one stream's are one series: sums, and the longest time."""
    other = stream("cam", "<publishing/><active/>" + client(8, 5), clients=3).replace("1500", "2500")
    found = parse(page(live(stream("cam", client(7, 2))), live(other)))
    assert found.streams == {
        ("live", "cam"): RtmpStream(4, 1, True, 140, 60, 2.5, {7: 2, 8: 5}),  # noqa: FBT003 - active
    }
    assert found.counts == {"live": 2}


def test_files_on_demand_have_clients_and_no_bytes() -> None:
    """A `play` section's stream has clients alone; one that stands twice in it has all of them."""
    file = "<stream><name>a.mp4</name><client><id>1</id></client><active/><nclients>2</nclients></stream>"
    section = f"<application><name>vod</name><play>{file * 2}<nclients>4</nclients></play></application>"
    assert parse(page(section)).streams == {("vod", "a.mp4"): RtmpStream(clients=4, active=True)}


def test_clients_that_are_not_listed_leave_drops_unknown() -> None:
    """With `rtmp_stat global live` nothing is known of drops, and clients are counted all the same."""
    found = parse(page(live(stream(clients=5))))
    assert (found.streams["live", "cam"].dropped, found.streams["live", "cam"].clients) == (None, 5)


def test_names_are_unescaped() -> None:
    """What the module has escaped is the name as it was."""
    assert list(parse(page(live(stream("a&lt;b&gt;&amp;&quot;c")))).streams) == [("live", 'a<b>&"c')]


def test_names_of_blanks_stay_apart() -> None:
    """Letters outside ASCII come as blanks: names of different lengths are still two."""
    assert list(parse(page(live(stream(" " * 6), stream(" " * 12)))).streams) == [
        ("live", " " * 6),
        ("live", " " * 12),
    ]


def test_a_stylesheet_and_foreign_elements_are_passed_over() -> None:
    """`rtmp_stat_stylesheet`, and what other builds add, change nothing."""
    head = (
        b'<?xml version="1.0" encoding="utf-8" ?>\r\n<?xml-stylesheet type="text/xsl" href="stat.xsl" ?>\r\n'
    )
    more = page(live(stream("cam", "<records><name>x</name><bytes_in>1</bytes_in></records>")))
    assert parse(head + more) == parse(page(live(stream())))


# -- bounds ------------------------------------------------------------------------------------------


def test_streams_past_the_cap_are_counted_and_not_kept() -> None:
    """Of ten streams three are kept; the application's count and the number left out stay true."""
    found = parse(page(live(*(stream(f"cam{n}") for n in range(10)))), Limits(3, 200))
    assert len(found.streams) == 3
    assert (found.counts, found.ignored) == ({"live": 10}, 7)


def test_streams_that_were_there_have_their_place() -> None:
    """A new stream that comes first on the page does not push out a known one; free room is used."""
    known = {("live", "cam1"), ("live", "cam2")}
    body = page(live(*(stream(f"cam{n}") for n in range(4))))
    assert set(parse_stat(body, Limits(2, 200), known).streams) == known
    assert set(parse_stat(body, Limits(3, 200), known).streams) == known | {("live", "cam0")}


def test_long_names_are_cut_and_stay_apart() -> None:
    """Two names that differ in their last letter alone are two series of bounded names."""
    found = parse(page(live(stream("x" * 255 + "a"), stream("x" * 255 + "b"))), Limits(10, 20))
    assert len(found.streams) == 2
    assert {len(name) for _, name in found.streams} == {20}


BILLION = '<!DOCTYPE r [<!ENTITY a "a"><!ENTITY b "&a;&a;">]><rtmp><uptime>&b;</uptime></rtmp>'
EXTERNAL = '<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]><rtmp><uptime>&x;</uptime></rtmp>'
BAD = {
    "empty": (b"", "no element found"),
    "text": (b"Active connections: 1", "not complete XML"),
    "html": (b"<!DOCTYPE html><html><body><p>Welcome</body></html>", "HTML"),
    "html without a type": (b"<html><head><title>404 Not Found</title></head></html>", "is <html>"),
    "another's page": (b"<rss version='2.0'><channel/></rss>", "is <rss>"),
    "nothing in it": (b"<rtmp/>", "has no <uptime>"),
    "another's uptime": (b"<status><uptime>1</uptime></status>", "is <status>, not <rtmp>"),
    "html that is no XML": (b"<html><head><meta><title>502</title></head></html>", "is <html>, not <rtmp>"),
    "entities": (BILLION.encode(), "document type"),
    "an external entity": (EXTERNAL.encode(), "document type"),
    "an external type": (b"<!DOCTYPE rtmp SYSTEM 'http://127.0.0.1/x.dtd'><rtmp/>", "document type"),
    "an unknown entity": (b"<rtmp><uptime>&a;</uptime></rtmp>", "undefined entity"),
    "two pages": (LIVE.rstrip() + LIVE[LIVE.index(b"<rtmp>") :], "not complete XML"),
    "no UTF-8": (b"<rtmp\xff><uptime>1</uptime></rtmp>", "not well-formed"),
    "an unknown encoding": (b"<?xml version='1.0' encoding='klingon'?><rtmp/>", "unknown encoding"),
    "an encoding of many bytes": (
        b"<?xml version='1.0' encoding='euc-jp'?><rtmp/>",
        "unknown encoding",
    ),
    "compressed": (b"\x1f\x8b\x08\x00" + bytes(40), "not complete XML"),
    "a long number": (page(head=f"<uptime>{'9' * 5000}</uptime>"), "characters in one element"),
    "HTML without a type": (b"<html><body>RTMP statistics</body></html>", "is <html>, not <rtmp>"),
    "JSON": (b'{"http-flv":{"uptime":9}}', "is JSON"),
    "the root alone": (b"<http-flv/>", "no <uptime>"),
    "depth": (b"<rtmp>" + b"<a>" * 100_000, f"more than {MAX_DEPTH} deep"),
    "a long name": (page(live(stream("x" * (MAX_TEXT + 1)))), f"{MAX_TEXT} characters"),
    "applications": (
        page(*(live(application=f"a{n}") for n in range(MAX_APPLICATIONS + 1))),
        f"{MAX_APPLICATIONS} applications",
    ),
}


@pytest.mark.parametrize(("body", "why"), BAD.values(), ids=BAD)
def test_what_is_no_stat_page(body: bytes, why: str) -> None:
    """Everything else is refused in one line that says why."""
    with pytest.raises(BadPage) as caught:
        parse(body)
    assert why in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_a_page_in_the_encoding_that_it_names(encoding: str) -> None:
    """The page's own declaration of its encoding is followed."""
    text = f"<?xml version='1.0' encoding='{encoding}'?>" + page(live(stream("é"))).decode()
    assert list(parse(text.encode(encoding)).streams) == [("live", "é")]


def test_a_page_of_streams_alone_costs_bounded_memory() -> None:
    """A page of 10,000 streams of names of their own takes no more memory than those that are kept."""
    body = page(live(*(stream(f"cam{n}") for n in range(10_000))))
    tracemalloc.start()
    found = parse(body, Limits(100, 200))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.ignored == 9_900
    assert peak < len(body)


# -- properties --------------------------------------------------------------------------------------

_WORDS = [b"<", b">", b"/>", b"</stream>", b"<stream>", b"<name>", b"&amp;", b"&x;", b"<!DOCTYPE r [", b"]]>"]
_NAMES = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff"), max_size=12
)
_STREAMS = st.lists(
    st.builds(
        lambda name, clients, dropped, flags: stream(
            escape(name), "".join(client(n, d) for n, d in dropped.items()) + flags, clients
        ),
        _NAMES | st.sampled_from(["cam1", "cam2"]),
        st.integers(0, 5),
        st.dictionaries(st.integers(0, 9), st.integers(0, 9), max_size=3),
        st.sampled_from(["", "<publishing/>", "<publishing/><active/>"]),
    ),
    max_size=8,
)


@given(st.lists(st.tuples(_NAMES | st.just("live"), _STREAMS), max_size=4), st.integers(1, 6))
def test_any_page_is_told_once_and_bounded(applications: list[tuple[str, list[str]]], most: int) -> None:
    """However often a name stands: at most so many series, and every stream is counted or told as ignored."""
    body = page(*(live(*streams, application=escape(name)) for name, streams in applications))
    found = parse(body, Limits(most, 200))
    assert len(found.streams) <= most
    total = sum(len(streams) for _, streams in applications)
    assert sum(found.counts.values()) == total
    assert len(found.streams) + found.ignored <= total
    whole = parse(body)
    told = sum(one.bytes_in or 0 for one in whole.streams.values())
    assert told == 70 * total


@given(st.binary(max_size=300) | st.lists(st.sampled_from(_WORDS), max_size=30).map(b"".join))
@example(b"<?xml version='1.0' encoding='utf-7'?><rtmp/>")
@example(b"<?xml version='1.0' encoding='idna'?><rtmp/>")
@example(b"<?xml version='1.0' encoding='zip'?><rtmp/>")
@example(b"<?xml version='1.0' encoding='undefined'?><rtmp/>")
def test_any_bytes_are_a_page_or_the_verdict(body: bytes) -> None:
    """Any bytes that are not a page raise BadPage and nothing else."""
    for content in (body, b"<rtmp>" + body, page().replace(b"</server>", body + b"</server>")):
        try:
            parse(content)
        except BadPage as verdict:
            assert str(verdict)  # noqa: PT017 - a page that is good is as right


@given(data=st.data())
def test_a_page_with_bytes_changed_is_a_page_or_the_verdict(data: st.DataObject) -> None:
    """A captured page with some bytes overwritten is read, or refused; it never gives more streams than 2."""
    body = bytearray(LIVE)
    for at in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=6)):
        body[at] = data.draw(st.integers(0, 255))
    try:
        found = parse(bytes(body))
    except BadPage:
        return
    assert len(found.streams) <= 2
