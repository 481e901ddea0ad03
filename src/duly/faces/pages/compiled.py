"""Compiled templates, kept for every app of this process; compiled beside the loop after the first page was asked for.

Compiling all takes an eighth of a second: too much on the way to a page, and nothing to spend where nobody looks.
"""

from __future__ import annotations

import asyncio
from typing import Final

import jinja2
from jinja2.bccache import Bucket

_CODE: Final[dict[str, bytes]] = {}  # by template and source: as many as the package has


class CompiledTemplates(jinja2.BytecodeCache):
    """Code in memory."""

    def load_bytecode(self, bucket: Bucket) -> None:
        """See BytecodeCache; the key and checksum name the template and its source."""
        code = _CODE.get(bucket.key + bucket.checksum)
        if code is not None:
            bucket.bytecode_from_string(code)

    def dump_bytecode(self, bucket: Bucket) -> None:
        """See BytecodeCache."""
        _CODE[bucket.key + bucket.checksum] = bucket.bytecode_to_string()


class Compilation:
    """Of all templates of an environment, once, in a thread."""

    def __init__(self, templates: jinja2.Environment) -> None:
        self._templates = templates
        self.under_way: asyncio.Future[None] | None = None

    def begin(self) -> None:
        """The first page was asked for: the others may follow."""
        if self.under_way is None:
            self.under_way = asyncio.get_running_loop().run_in_executor(None, self._compile)

    def _compile(self) -> None:
        for name in self._templates.list_templates(extensions=["html"]):
            self._templates.get_template(name)
