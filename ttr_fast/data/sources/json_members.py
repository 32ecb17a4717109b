"""One JSON record looked at closely: which fields it has and where, and if it is bad, what is wrong with it and at which byte.

msgspec decodes records fast and strictly, but takes the last of two equal keys and does not say where a field stands. This is the slow way for
records that msgspec refuses or that may have a key twice.
"""

import difflib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from ...errors import quoted
from .rows import ABSENT, Wanted
from .times import INTEGER

MAX_DEPTH = 64
"""Of brackets in a record."""
# possessive, so that a long string costs no memory
TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\],:]', re.DOTALL)
LONE_SURROGATE = re.compile(
    rb"(?<!\\)(?:\\\\)*(?:\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)
PLACE_OF_MSGSPEC = re.compile(r"^JSON is malformed: (.*) \(byte ([0-9]+)\)$")
KINDS = {ord("{"): "an object", ord("["): "an array", ord('"'): "a string", ord("t"): "true", ord("f"): "false", ord("n"): "null"}


class Nothing(msgspec.Struct):
    """Takes any object, so that only its syntax is checked."""


SYNTAX = msgspec.json.Decoder(Nothing | str)


class Bad(Exception):
    """What is wrong with a record, and at which byte."""

    def __init__(self, at: int, reason: str) -> None:
        super().__init__(reason)
        self.at, self.reason = at, reason


class Member(NamedTuple):
    """A field of the record, where its key and its value start, and its value as it is written."""

    key: str
    key_at: int
    at: int
    raw: bytes


def examined(record: bytes, wanted: Sequence[Wanted], text: str | None) -> list[Any]:
    """The values of the wanted fields: texts as str or int, times as they are written. A string is a record with the field `text` alone.

    Raises Bad.
    """
    _check_text(record)
    _check_depth(record)
    _check_syntax(record, text is not None)
    if record.lstrip()[:1] == b'"':
        alone = msgspec.json.decode(record, type=str)
        return [alone if field.name == text else _missing(field, []) for field in wanted]
    found: dict[str, Member] = {}
    names = {field.name for field in wanted}
    for member in members(record):
        if member.key in names and member.key in found:
            raise Bad(member.key_at, f"field {quoted(member.key)} is there twice, expected it once")
        found[member.key] = member
    return [_value(found[field.name], field) if field.name in found else _missing(field, list(found)) for field in wanted]


def members(record: bytes) -> list[Member]:
    """The fields of a record that is valid JSON, in their order; none if it is no object."""
    found: list[Member] = []
    depth = 0
    key = key_at = value_at = None
    for token in TOKEN.finditer(record):
        symbol = record[token.start()]
        if depth == 1 and value_at is not None and symbol in b",}":
            found.append(_member(record, key, key_at, value_at, token.start()))  # type: ignore[arg-type]  # a value has a key
            value_at = None
        if symbol in b"{[":
            depth += 1
        elif symbol in b"}]":
            depth -= 1
        elif symbol == ord('"') and depth == 1 and value_at is None:
            key, key_at = token.group(), token.start()
        elif symbol == ord(":") and depth == 1:
            value_at = token.end()
    return found


def _member(record: bytes, key: bytes, key_at: int, start: int, end: int) -> Member:
    value = record[start:end]
    return Member(msgspec.json.decode(key, type=str), key_at, start + len(value) - len(value.lstrip()), value.strip())


def _value(member: Member, field: Wanted) -> Any:
    raw = member.raw
    kind = KINDS.get(raw[0])
    if kind == "a string":
        return msgspec.json.decode(raw, type=str)
    what, expected = ("the time", "a number or text") if field.is_time else (f"field {quoted(member.key)}", "text")
    if kind is not None:
        raise Bad(member.at, f"{what} is {kind}, expected {expected}")
    text = raw.decode()
    if field.is_time:
        return text
    if not INTEGER.fullmatch(text):
        raise Bad(member.at, f"field {quoted(member.key)} is the number {quoted(text)}, expected text or a whole number")
    return int(text)


def _missing(field: Wanted, there: list[str]) -> Any:
    if field.optional:
        return ABSENT
    close = did_you_mean(field.name, there)
    raise Bad(0, f"there is no field {quoted(field.name)}{close}, expected it beside {listed(there)}")


def did_you_mean(name: str, there: Sequence[str]) -> str:
    """A hint in brackets, if one of those that are there is much like it."""
    by_lower = {other.lower(): other for other in there}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f" (did you mean {quoted(by_lower[close[0]])}?)" if close else ""


def listed(names: Sequence[str], most: int = 20) -> str:
    """Names in a message."""
    return (", ".join(map(quoted, names[:most])) + (", …" if len(names) > most else "")) or "no other"


def _check_text(record: bytes) -> None:
    try:
        record.decode()
    except UnicodeDecodeError as error:
        raise Bad(error.start, "the record is not UTF-8, expected UTF-8 text") from None
    if b"\0" in record:
        raise Bad(record.index(b"\0"), "the record has a NUL byte, expected text")


def _check_depth(record: bytes) -> None:
    depth = 0
    for token in TOKEN.finditer(record):
        symbol = record[token.start()]
        depth += (symbol in b"{[") - (symbol in b"}]")
        if depth > MAX_DEPTH:
            raise Bad(token.start(), f"the record is nested deeper than {MAX_DEPTH} brackets, expected a flatter one")


def _check_syntax(record: bytes, strings: bool) -> None:
    if not record.strip():
        raise Bad(0, "there is nothing between two commas or brackets, expected a record")
    try:
        found = SYNTAX.decode(record)
    except msgspec.ValidationError:
        kind = KINDS.get(record.lstrip()[0], "a number")
        raise Bad(0, f"the record is {kind}, expected an object{' or a string' * strings}") from None
    except msgspec.DecodeError as error:
        lone = LONE_SURROGATE.search(record)
        if lone:
            raise Bad(lone.start(), "the record has one half of a surrogate pair, expected both or none") from None
        place = PLACE_OF_MSGSPEC.match(str(error))
        if place:
            raise Bad(int(place[2]), f"the record is not valid JSON ({place[1]}), expected an object") from None
        raise Bad(len(record), "the record ends too early, expected a whole object") from None
    if isinstance(found, str) and not strings:
        raise Bad(0, "the record is a string, expected an object")
