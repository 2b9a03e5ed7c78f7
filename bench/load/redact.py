"""Hides the secrets of command lines, URLs and what FFmpeg prints, so that people can show them. Pure.

Hidden are: user names and passwords in URLs; query values whose names look secret; RTMP stream keys, which
is all that follows the application's name; the values of options and of `name=value` pairs whose names look
secret; HTTP headers. In doubt more is hidden than need be: what follows a secret in the same word may be a
part of it. Files, hosts, ports and all that sets up an encoder stay.

Source: https://ffmpeg.org/ffmpeg-protocols.html, https://ffmpeg.org/ffmpeg-formats.html#tee
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    Span = tuple[int, int]

HIDDEN = "***"

# A name looks secret if one of these is one of its words: auth_key, X-Amz-Signature, wsSecret.
_SECRET_WORDS = frozenset(
    ("key", "keys", "auth", "authorization", "cred", "creds", "jwt", "bearer", "hmac", "psk", "pwd")
)
# These mean something else in FFmpeg's options (-pass 1, -hash md5), and a secret in a query.
_QUERY_WORDS = frozenset(
    (
        *("pass", "user", "username", "sig", "sign", "hash", "md5", "session", "sid", "sas", "ticket"),
        *("hdnts", "hdnea", "hdntl"),  # Akamai's tokens
    )
)
# Or if one of these is anywhere in it: apikey, srt_streamid, ftp-password.
_SECRET_PARTS = re.compile(
    r"token|secret|passphrase|passw|apikey|accesskey|streamkey|credential|streamid|signature|cookie|playpath|"
    r"rtmp_conn|rtmp_subscribe|activation_bytes|srtp_(?:in|out)_params"
)
_KEY_FRAMES = re.compile(r"key[_-]?(?:frames?|int)")  # -force_key_frames
_WORDS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")

# Within tee's slaves a colon or a slash may be escaped.
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,30})\\*:\\*/\\*/", re.IGNORECASE)
_USER = re.compile(r"[^/?#]*@")
_USER_WITH_SLASH = re.compile(r"[^/?#:@\[\]]*:(?![0-9]*(?:[/?#]|$)).*@", re.DOTALL)
_PARAMETER = re.compile(r"[?&;#]([^=&;#?]*)=")
_RTMP_KEY = re.compile(r"[^/?]*/+(?:[^/?]+/+)?(.+)", re.DOTALL)
_PAIR = re.compile(r"(?<![\w.%-])([\w.%-]+)=")
_HEADER = re.compile(r"(?<![\w-])([\w-]+):(?= |(?<=authorization:))", re.IGNORECASE)
_HEADER_LINE = re.compile(r"(?:[^:\r\n]*:)?[ \t]*([^\r\n]+)")
_UNTIL_PARAMETER = re.compile(r"[^&]*")
# FFmpeg's own quoting: a backslash, and single quotes. Possessive: an unbalanced quote is not tried twice.
_UNTIL_COLON = re.compile(r"(?:\\.?|'[^']*+'?|[^\\':])*+", re.DOTALL)
_SLAVE = re.compile(r"(?:\\.?|'[^']*+'?|[^\\'|])++", re.DOTALL)
_SLAVE_OPTIONS = re.compile(r"\s*+\[((?:\\.?|'[^']*+'?|[^\\'\]])*+)\]", re.DOTALL)
_SLAVE_TARGET = re.compile(r"[\s']*(?:[a-z][a-z0-9+.-]*\\*:\\*/\\*/|[./])", re.IGNORECASE)
_QUOTING = re.compile(r"\\(.)|'", re.DOTALL)
_OPTION = re.compile(r"--?/?([A-Za-z][\w-]*)(?::[\w:#.-]*)?")

_IN_TEXT = re.compile(r"[^\s'\"<>]+")  # what may be a URL or a pair in a sentence
_TRAILING = ":,.;)]"
_SHORTEST = 4  # characters of a secret that is looked for by itself: what is shorter is in every sentence
_SHORTEST_PIECE = 8
_PIECES = re.compile(r"[\s/?&=:@]+")
# Names of streams that are no secrets, but words of FFmpeg's messages.
_ORDINARY = frozenset(("live", "stream", "test", HIDDEN))


def describe_command(argv: Sequence[str]) -> str:
    """Return a command line as people can paste it into a shell, its secrets hidden."""
    return shlex.join(redact_command(argv))


def redact_command(argv: Sequence[str]) -> list[str]:
    """Return the words of a command with their secrets hidden."""
    return [_hide(word, spans) for word, spans in _secrets_in_command(argv)]


def redact_url(url: str) -> str:
    """Return a URL, or another word of a command, with its secrets hidden."""
    return _hide(url, _in_word(url))


def secrets_of(*argv: str) -> frozenset[str]:
    """Return the secrets of a command, or of a URL, as a program may repeat them in what it prints."""
    found: set[str] = set()
    for word, spans in _secrets_in_command(argv):
        for begin, end in spans:
            secret = word[begin:end]
            for spelling in (secret, unquote(secret), _QUOTING.sub(r"\1", secret)):
                found |= {spelling, spelling.partition("?")[0], spelling.partition(":")[2]}
                found |= {part for part in _PIECES.split(spelling) if len(part) >= _SHORTEST_PIECE}
    return frozenset(secret for secret in found if len(secret) >= _SHORTEST and secret not in _ORDINARY)


def redact_text(text: str, secrets: Iterable[str] = ()) -> str:
    """Return what a program has printed without these secrets, and without those of URLs and pairs in it."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = re.sub(rf"(?<![^\W_]){re.escape(secret)}(?![^\W_])", HIDDEN, text)
    lines = text.splitlines(keepends=True)
    return "".join(_redact_line(line) for line in lines)


def _redact_line(line: str) -> str:
    line = _hide(line, _headers(line))
    return _IN_TEXT.sub(lambda match: _redact_token(match[0]), line)


def _redact_token(token: str) -> str:
    bare = token.rstrip(_TRAILING)
    return redact_url(bare) + token[len(bare) :]


def _hide(text: str, spans: Iterable[Span]) -> str:
    """Return the text with these parts hidden; they may overlap."""
    parts, position = [], 0
    for begin, end in sorted(spans):
        if end <= begin or end <= position:
            continue
        if begin >= position:
            parts += [text[position:begin], HIDDEN]
        position = end
    return "".join([*parts, text[position:]])


def _secrets_in_command(argv: Iterable[str]) -> Iterator[tuple[str, list[Span]]]:
    """Yield each word of a command, and where its secrets are."""
    option = ""
    for word in argv:
        if option == "headers":
            spans = [match.span(1) for match in _HEADER_LINE.finditer(word)]
        elif option and _looks_secret(option):
            spans = [(0, len(word))]
        else:
            spans = _in_word(word)
        yield word, spans
        match = _OPTION.fullmatch(word)
        option = match[1] if match else ""


def _in_word(word: str) -> list[Span]:
    """Return where the secrets of a word are that is not an option's secret value."""
    slaves = [*_SLAVE.finditer(word)]
    options = [_SLAVE_OPTIONS.match(slave[0]) for slave in slaves]
    pairs = zip(slaves, options, strict=True)
    if not all((listed and "=" in listed[1]) or _SLAVE_TARGET.match(slave[0]) for slave, listed in pairs):
        return _in_target(word)  # not tee's: a bar may be a part of a secret
    spans: list[Span] = []
    for slave, listed in zip(slaves, options, strict=True):
        begin = slave.start()
        if listed:
            spans += _shifted(_urls(listed[1]), begin + listed.start(1))
            spans += _shifted(_pairs(listed[1], _UNTIL_COLON), begin + listed.start(1))
        target = listed.end() if listed else 0
        spans += _shifted(_in_target(slave[0][target:]), begin + target)
    return spans


def _in_target(text: str) -> list[Span]:
    """Return where the secrets of a URL, a pair or a header are, which may be wrapped in something else."""
    return [*_urls(text), *_pairs(text), *_headers(text)]


def _shifted(spans: Iterable[Span], by: int) -> list[Span]:
    return [(begin + by, end + by) for begin, end in spans]


def _urls(text: str) -> Iterator[Span]:
    """Yield where the secrets of all URLs in a text are; each is taken to go on to its end."""
    for match in _SCHEME.finditer(text):
        begin = match.end()
        rest = text[begin:]
        user = _USER.match(rest) or _USER_WITH_SLASH.match(rest)
        if user:
            yield begin, begin + user.end() - 1
            begin += user.end()
            rest = text[begin:]
        if "rtmp" in match[1].lower():
            if key := _RTMP_KEY.match(rest):
                yield begin + key.start(1), begin + key.end(1)
            continue
        for parameter in _PARAMETER.finditer(rest):
            if _looks_secret(unquote(parameter[1]), in_query=True):
                value = _UNTIL_PARAMETER.match(rest, parameter.end())
                yield begin + parameter.end(), begin + (value.end() if value else len(rest))


def _pairs(text: str, value: re.Pattern[str] | None = None) -> Iterator[Span]:
    """Yield where the values of secret `name=value` pairs are.

    Without a pattern they go on to the end; in a query, to the next parameter.
    """
    for match in _PAIR.finditer(text):
        if not _looks_secret(unquote(match[1])):
            continue
        in_query = text[: match.start()].endswith(("?", "&", ";", "#"))
        pattern = _UNTIL_PARAMETER if in_query and value is None else value
        found = pattern.match(text, match.end()) if pattern else None
        yield match.end(), found.end() if found else len(text)


def _headers(text: str) -> Iterator[Span]:
    """Yield where the values of secret HTTP headers are."""
    for match in _HEADER.finditer(text):
        if _looks_secret(match[1]):
            yield match.end() + text[match.end() :].startswith(" "), len(text.rstrip("\r\n"))


def _looks_secret(name: str, *, in_query: bool = False) -> bool:
    """Return whether what goes by this name is probably a secret."""
    plain = _KEY_FRAMES.sub("", name)
    if _SECRET_PARTS.search(plain.lower()):
        return True
    words = {word.lower() for word in _WORDS.findall(plain)}
    return bool(words & _SECRET_WORDS) or (in_query and bool(words & _QUERY_WORDS))
