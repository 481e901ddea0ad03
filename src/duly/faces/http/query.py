"""Query parameters: each operation declares them as a struct; what is unknown, repeated or unreadable is refused."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, ClassVar, Final, TypeVar, get_args, get_origin
from urllib.parse import parse_qsl, urlencode

import msgspec
from msgspec import Meta

from duly.core.errors import InvalidInput, Malformed
from duly.core.misfits import misfits, refused

Q = TypeVar("Q", bound="Query")
_MOST = 1_000  # parameters in one query

Limit = Annotated[int, Meta(ge=1, le=1000, description="how many items at most")]
Cursor = Annotated[str, Meta(pattern="^[A-Za-z0-9_=-]+$", max_length=4096, description="`next` of the page before")]
NO_CONTROLS: Final = "^[^\\x00-\\x1f\\x7f]*$"


class Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parameters of an operation; a list may be given by repeating the name, those in `commas` also as a,b.

    What may be left out and is no string defaults to UNSET: for a field that may be None, the text `null` is None.
    """

    commas: ClassVar[frozenset[str]] = frozenset()


def parse_query(raw: bytes) -> list[tuple[str, str]]:
    """Names and values in order. Raises Malformed for what is not UTF-8 or has control characters."""
    try:
        pairs = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, max_num_fields=_MOST, encoding="utf-8", errors="strict"
        )
    except ValueError:
        raise Malformed("the query is not percent-encoded UTF-8, or has too many parameters") from None
    for name, value in pairs:
        if not (name + value).isprintable() and any(ord(letter) < 32 or ord(letter) == 127 for letter in name + value):
            raise Malformed("the query has control characters")
    return pairs


def read_query(pairs: list[tuple[str, str]], shape: type[Q]) -> Q:
    """The parameters in their shape. Raises InvalidInput with pointers like `/query/limit`."""
    lists = _list_names(shape)
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in lists:
            values.setdefault(name, []).extend(value.split(",") if name in shape.commas else [value])
        elif name in values:
            raise InvalidInput.at(f"/query/{name}", "given more than once")
        else:
            values[name] = value
    try:
        return msgspec.convert(values, shape, strict=False)
    except msgspec.ValidationError as error:
        raise refused(misfits(values, shape, error, "/query", strict=False)) from None


def next_link(path: str, pairs: list[tuple[str, str]], cursor: str) -> str:
    """The Link header of a page that has a next one: the same query with another cursor."""
    query = [*((name, value) for name, value in pairs if name != "cursor"), ("cursor", cursor)]
    return f'<{path}?{urlencode(query)}>; rel="next"'


@lru_cache(maxsize=256)
def _list_names(shape: type[Query]) -> frozenset[str]:
    return frozenset(field.encode_name for field in msgspec.structs.fields(shape) if _is_list(field.type))


def _is_list(annotation: Any) -> bool:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _is_list(get_args(annotation)[0])
    return origin in (list, tuple)
