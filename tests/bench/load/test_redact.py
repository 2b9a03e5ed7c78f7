"""Secrets in command lines and in what FFmpeg prints: hidden wherever they stand, and nothing else is."""

from __future__ import annotations

import shlex
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from powerbench_agent.bench.load.redact import (
    describe_command,
    redact_command,
    redact_text,
    redact_url,
    secrets_of,
)

# Where people put secrets: {} is one. The first word of each is an option or the program.
PLACES = [
    ["ffmpeg", "rtmp://host/live/{}"],
    ["ffmpeg", "rtmp://host/live/instance/{}"],
    ["ffmpeg", "rtmps://host:443/app/{}?backup=1"],
    ["ffmpeg", "RTMPT://host/{}"],
    ["ffmpeg", "rtmp://127.0.0.1:1935/live/{}"],
    ["ffmpeg", "rtmp://host/live/key?token={}&user=x"],
    ["ffmpeg", "rtmp://host/app?doConnect={}/stream"],
    ["ffmpeg", "rtmp://host/live/key pubUser=me pubPasswd={}"],
    ["ffmpeg", "rtmp://me:{}@host/live/key"],
    ["ffmpeg", "https://{}@host:8080/path"],
    ["ffmpeg", "icecast://source:{}@host/mount"],
    ["ffmpeg", "srt://host:9000?mode=caller&passphrase={}&latency=200"],
    ["ffmpeg", "srt://host:9000?streamid=publish:{}"],
    ["ffmpeg", "rist://host:1968?secret={}"],
    ["ffmpeg", "-i", "https://host/a.m3u8?a=1&X-Amz-Signature={}&b=2"],
    ["ffmpeg", "-i", "https://host/a.m3u8?wsSecret={}"],
    ["ffmpeg", "-i", "https://host/a.m3u8?%74oken={}"],
    ["ffmpeg", "-i", "https://host/a.m3u8#access_token={}"],
    ["ffmpeg", "-i", "https://host/a?pass={}"],
    ["ffmpeg", "-i", "https://host/a?next=http://me:{}@other/"],
    ["ffmpeg", "-i", "cache:https://host/a?key={}"],
    ["ffmpeg", "-i", "concat:http://a/x?sig={}|http://me:{}@b/y"],
    ["ffmpeg", "-headers", "Authorization: Bearer {}\r\nX-Custom: {}\r\n", "-i", "x"],
    ["ffmpeg", "-headers", "{}", "-i", "x"],
    ["ffmpeg", "-cookies", "id={}; path=/", "-i", "x"],
    ["ffmpeg", "-passphrase", "{}", "x"],
    ["ffmpeg", "-srt_streamid", "{}", "x"],
    ["ffmpeg", "-rtmp_playpath", "{}", "x"],
    ["ffmpeg", "-decryption_key", "{}", "x"],
    ["ffmpeg", "-ftp-password", "{}", "x"],
    ["ffmpeg", "-authorization", "{}", "x"],
    ["ffmpeg", "-/token:v", "{}", "x"],
    ["ffmpeg", "-f", "tee", "[f=flv]rtmp://a/live/{}|[f=mpegts:passphrase={}:onfail=ignore]srt://b:1|c.mkv"],
    ["ffmpeg", "-f", "tee", "[f=flv:rtmp_playpath='a]{}']rtmp://a/live|[f=flv]rtmp\\://b/live/{}"],
    ["ffmpeg", "-f", "tee", "[f=x:http_proxy=http\\://me\\:{}@host]y"],
    ["ffmpeg", "-f", "tee", "rtmp://a/live/{}|srt://b:1?passphrase={}"],
    ["curl", "-H", "Authorization: Basic {}"],
    ["env", "API_TOKEN={}", "ffmpeg"],
    ["tool", "--password={} x"],
]

# Letters that no name in PLACES has, so that a secret in what is left is found.
SECRETS = st.text("QZJ019-_~.!*%+é", min_size=4, max_size=30).filter(lambda text: text.strip("-_~.!*%+"))
# What FFmpeg takes as it stands as a value of its own, whatever is in it.
ANY_SECRETS = st.text("QZJ09 '\"\\:;=&|[]@/?#$", min_size=4, max_size=30)


@pytest.mark.parametrize("place", PLACES, ids=" ".join)
@given(secret=SECRETS)
def test_a_planted_secret_never_appears(place: list[str], secret: str) -> None:
    """Neither in the command line, nor in what FFmpeg says of its last word."""
    argv = [word.replace("{}", secret) for word in place]
    assert secret not in describe_command(argv).replace("'\"'\"'", "'")
    said = f"[out#0/flv @ 0x55] Error opening output {argv[-1]}: refused"
    assert secret not in redact_text(said, secrets_of(*argv))


@pytest.mark.parametrize(
    "place",
    [
        ["ffmpeg", "-passphrase", "{}"],
        ["ffmpeg", "-cookies", "{}"],
        ["ffmpeg", "-metadata", "password={}"],
        ["tool", "--api-key={}"],
        ["curl", "-H", "X-Token: {}"],
    ],
    ids=" ".join,
)
@example("a|[b]cd")
@example("a|bcd:e")
@given(secret=ANY_SECRETS)
def test_a_value_of_its_own_is_hidden_whatever_is_in_it(place: list[str], secret: str) -> None:
    """Separators within a secret do not end it."""
    hidden = redact_command([word.replace("{}", secret) for word in place])
    assert hidden == [word.replace("{}", "***") for word in place]


@pytest.mark.parametrize(
    "url", ["rtmp://host/live/{}", "rtmp://me:{}@host/live/x", "srt://h:1?passphrase={}"]
)
@given(secret=SECRETS)
def test_what_a_server_repeats_of_a_url_is_hidden(url: str, secret: str) -> None:
    """FFmpeg prints the key alone, too, as in a server's error."""
    secrets = secrets_of(url.replace("{}", secret))
    assert secret not in redact_text(f"Server error: {secret} is busy", secrets)


@given(words=st.lists(st.text(max_size=40), max_size=6))
def test_any_words_can_be_redacted_and_once_is_enough(words: list[str]) -> None:
    """No input raises, and what is redacted already stays as it is."""
    hidden = redact_command(words)
    assert len(hidden) == len(words)
    assert shlex.split(describe_command(words)) == hidden
    redact_text("\n".join(words), secrets_of(*words))


@pytest.mark.parametrize("word", ["['", "'", "a", "a=", "a:", "a://", "|[", "\\\\", "?a=b&", "://a:b"])
def test_a_long_word_takes_no_longer_than_it_is(word: str) -> None:
    """What a program prints may be long and odd: no pattern tries it again and again."""
    begun = time.process_time()
    redact_text(word[0] + word * 3000, secrets_of(word))
    redact_command([word[0] + word[-1] * 30_000])
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    "command",
    [
        "ffmpeg -hide_banner -nostdin -progress pipe:7 -re -f lavfi -i testsrc2=size=640x360:rate=25",
        "ffmpeg -i 'file:/my videos/a key.mkv' -map 0:V:0 -c:v libx265 -x265-params keyint=50:min-keyint=25",
        "ffmpeg -force_key_frames 'expr:gte(t,n_forced*2)' -keyint_min 25 -pass 1 -passlogfile log -f hash x",
        "ffmpeg -vf colorkey=green,scale=1280:720:flags=bicubic -flags +global_header -f null -",
        "ffmpeg -i 'http://host:8080/a@b/c.m3u8?quality=best&t=10' -f mpegts 'srt://host:9000?latency=200'",
        "ffmpeg -f flv -listen 1 -i 'tcp://127.0.0.1:4321?listen=1&listen_timeout=60000' -c copy out.mkv",
        "ffmpeg -f tee '[f=mpegts:onfail=ignore]udp://10.0.0.1:1234|[select=v]out.mkv'",
    ],
)
def test_what_sets_up_an_encoder_stays(command: str) -> None:
    """A command without secrets is shown as it is, ready to be pasted."""
    argv = shlex.split(command)
    assert describe_command(argv) == shlex.join(argv)
    assert redact_text(command) == command


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtmp://host:1935/live/KEY", "rtmp://host:1935/live/***"),
        ("rtmp://me:pw@host/live/KEY?x=1", "rtmp://***@host/live/***"),
        ("rtmp://host/KEY", "rtmp://host/***"),
        ("srt://h:1?mode=caller&passphrase=x&latency=2", "srt://h:1?mode=caller&passphrase=***&latency=2"),
        ("http://127.0.0.1:9510", "http://127.0.0.1:9510"),
        ("embedded", "embedded"),
        ("null", "null"),
    ],
)
def test_the_rest_of_a_url_stays(url: str, shown: str) -> None:
    """Where a stream goes can be read, with what it was sent."""
    assert redact_url(url) == shown
    assert redact_url(shown) == shown


def test_ffmpegs_words_are_still_to_be_read() -> None:
    """A key that is an ordinary word is hidden in its URL alone; the rest of the line stays."""
    url = "rtmp://127.0.0.1:1935/live/stream"
    line = f"[out#0/flv @ 0x55] Error opening output {url}: Connection refused | Cannot map stream 0"
    assert redact_text(line, secrets_of(url)) == line.replace("live/stream", "live/***")
