"""Where a JSON value does not fit the shape it should have: each place, with its JSON pointer.

msgspec stops at the first misfit, which is right for whoever sends a thousand jobs a second and wrong for whoever
mends a form: so a value that was refused is looked through once more, field by field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from types import UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

import msgspec

from duly.core import contract
from duly.core.errors import FieldError, InvalidInput
from duly.core.model import Backoff, Delivery, Dst, Isolation, Misfire, Overlap

MOST_TOLD: Final = 50  # fields in one answer

_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "kind": ("function", "command", "http"),
    "dst": get_args(Dst),
    "misfire": get_args(Misfire),
    "overlap": get_args(Overlap),
    "delivery": get_args(Delivery),
    "backoff": get_args(Backoff),
    "isolation": get_args(Isolation),
    "state": get_args(contract.JobStateName),
    "action": ("pause", "resume", "delete", "trigger"),
    "mode": ("sync", "async"),
}

_PATH = re.compile(r"^\$|(?:\.([^.\[\]]+))|(?:\[(\d+|\.\.\.)\])")


def misfits(
    value: object, shape: Any, error: msgspec.ValidationError, prefix: str = "", *, strict: bool = True
) -> list[FieldError]:
    """Every misfit of a JSON value that `error` was raised for, pointers beginning with `prefix`; at least one.

    UNSET for a value that cannot be looked at: then there is the one that the error names.
    """
    if value is msgspec.UNSET:
        return [_complaint(error, prefix)]
    return list(_within(value, shape, prefix, strict)) or [_complaint(error, prefix)]


def refused(errors: Sequence[FieldError]) -> InvalidInput:
    """One error for them: the first said, the rest counted, at most 50 listed."""
    first = errors[0]
    if len(errors) == 1:
        return InvalidInput(first.detail, errors=(first,))
    detail = f"{first.pointer}: {first.detail} (and {len(errors) - 1} more)"
    return InvalidInput(detail, errors=tuple(errors[:MOST_TOLD]))


def _within(value: object, shape: Any, pointer: str, strict: bool) -> Iterable[FieldError]:
    if get_origin(shape) is Annotated:
        inner = list(_within(value, get_args(shape)[0], pointer, strict))
        yield from inner or _itself(value, shape, pointer, strict)
        return
    if isinstance(value, dict):
        struct = _struct_for(value, shape)
        if struct is not None:
            yield from _fields(value, struct, pointer, strict)
            return
        if get_origin(shape) is dict:
            keys, values = get_args(shape)
            yield from islice((each for name in value for each in _itself(name, keys, pointer, strict)), 1)
            for name, one in value.items():
                yield from _within(one, values, f"{pointer}/{escape(name)}", strict)
            return
    if isinstance(value, list) and get_origin(shape) is list:
        for index, one in enumerate(value):
            yield from _within(one, get_args(shape)[0], f"{pointer}/{index}", strict)
        return
    if get_origin(shape) in (Union, UnionType) and value is not None:
        some = [each for each in get_args(shape) if each is not type(None)]
        if len(some) == 1:
            yield from _within(value, some[0], pointer, strict)
            return
    yield from _itself(value, shape, pointer, strict)


def _struct_for(value: dict[str, Any], shape: Any) -> type[msgspec.Struct] | None:
    """The struct that an object is to be: the shape, or the one of several that its tag names."""
    for each in (shape, *get_args(shape)):
        if isinstance(each, type) and issubclass(each, msgspec.Struct):
            config = each.__struct_config__
            if config.tag_field is None or value.get(config.tag_field) == config.tag:
                return each
    return None


def _fields(value: dict[str, Any], struct: type[msgspec.Struct], pointer: str, strict: bool) -> Iterable[FieldError]:
    known = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    config = struct.__struct_config__
    for name, one in value.items():
        if name in known:
            yield from _within(one, known[name].type, f"{pointer}/{escape(name)}", strict)
        elif config.forbid_unknown_fields and name != config.tag_field:
            yield FieldError(f"{pointer}/{escape(name)}", f"unknown field {name!r}")
    for name, field in known.items():
        if field.required and name not in value:
            yield FieldError(f"{pointer}/{escape(name)}", f"{name} is required")


def _itself(value: object, shape: Any, pointer: str, strict: bool) -> Iterable[FieldError]:
    if shape is msgspec.Raw:
        return
    try:
        msgspec.convert(value, shape, strict=strict)
    except msgspec.ValidationError as error:
        yield _complaint(error, pointer)


def _complaint(error: msgspec.ValidationError, prefix: str = "") -> FieldError:
    """msgspec's message (`Expected `int`, got `str` - at `$.priority``) as a field's error, at a JSON pointer."""
    text, _, path = str(error).partition(" - at `")
    pointer = prefix + _pointer(path.rstrip("`"))
    unknown = re.match(r"Object contains unknown field `(.*)`", text)
    if unknown:
        name = unknown.group(1)
        return FieldError(f"{pointer}/{escape(name)}", f"unknown field {name!r}")
    missing = re.match(r"Object missing required field `(.*)`", text)
    if missing:
        name = missing.group(1)
        return FieldError(f"{pointer}/{escape(name)}", f"{name} is required")
    choices = _CHOICES.get(pointer.rpartition("/")[2])
    if choices and text.startswith("Invalid"):
        return FieldError(pointer, f"one of {', '.join(choices[:-1])} or {choices[-1]}; {text[:1].lower()}{text[1:]}")
    return FieldError(pointer, text[:1].lower() + text[1:])


def escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _pointer(path: str) -> str:
    """`$.task.argv[0]` → `/task/argv/0`."""
    parts = (match.group(1) or match.group(2) for match in _PATH.finditer(path))
    return "".join(f"/{escape(part)}" for part in parts if part)
