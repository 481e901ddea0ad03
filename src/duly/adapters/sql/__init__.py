"""The SQL of the stores: numbered migrations and named statements, one directory per dialect.

sql/<dialect>/0001_what_it_does.sql     applied once, in order, never edited after a release
sql/<dialect>/statements.sql            `-- name: x`, then one statement; other comments give reasons
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import NamedTuple

_NAME = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)
_COMMENT = re.compile(r"^\s*--.*$\n?", re.MULTILINE)


class Migration(NamedTuple):
    """One step of the schema. `digest` is the sha256 of its text, in hex."""

    number: int
    name: str
    text: str
    digest: str


@cache
def statements(dialect: str, part: str = "statements") -> Mapping[str, str]:
    """The named statements of a dialect, from `<part>.sql`; comments are left out, a trailing semicolon too."""
    text = (files(__package__) / dialect / f"{part}.sql").read_text(encoding="utf-8")
    pieces = _NAME.split(text)
    names, bodies = pieces[1::2], pieces[2::2]
    found = {name: _COMMENT.sub("", body).strip().rstrip(";") for name, body in zip(names, bodies, strict=True)}
    if len(found) != len(names):
        raise ValueError(f"a statement of {dialect}/{part}.sql is named twice")
    return MappingProxyType(found)


@cache
def migrations(dialect: str) -> tuple[Migration, ...]:
    """The migrations of a dialect in order. Their numbers have no gaps: 1, 2, 3 …"""
    found = []
    for file in (files(__package__) / dialect).iterdir():
        number, _, rest = file.name.partition("_")
        if number.isdecimal() and rest.endswith(".sql"):
            text = file.read_text(encoding="utf-8")
            digest = hashlib.sha256(text.encode()).hexdigest()
            found.append(Migration(int(number), rest.removesuffix(".sql"), text, digest))
    found.sort()
    if [step.number for step in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"the migrations of {dialect} are not numbered 1, 2, 3 …")
    return tuple(found)
