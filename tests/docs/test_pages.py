"""Every command and snippet of the docs does what its page says."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docs.blocks import PAGES, ROOT, Block, blocks_of
from docs.expected import Known
from docs.session import Session
from duly import Duly
from duly.core.contract import JobSpec
from duly.core.crontab import parse_crontab
from duly.core.definition import convert, define_job
from duly.core.model import JobId
from duly.settings import load

NOT_RUN = 25  # blocks in all pages that are only read, each with its reason
RUN = ("python", "console", "toml", "json", "crontab")


class Page:
    """A page under test: a folder, a shell, and a namespace for its Python."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known = Known()
        self.session = Session(folder, self.known)
        self.module: types.ModuleType | None = None
        self.printed = ""

    def take(self, block: Block) -> None:
        """Do what a block says."""
        if block.title:
            path = self.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.known.actual(block.text))
            if block.text.startswith("#!"):
                path.chmod(0o755)
        match block.language:
            case "python":
                compile(block.text, str(block), "exec")
                if not block.title and not block.reason:
                    self._execute(block)
            case "console" if not block.reason:
                self.session.run(block)
            case "toml":
                tomllib.loads(block.text)
                if block.title == "duly.toml":
                    load(path=self.folder / block.title, environ={})
            case "json":
                document = json.loads(block.text)
                if "task" in document and "schedule" in document:
                    define_job(convert(document, JobSpec), job_id=JobId(""), now=0)
            case "crontab" if not block.reason:
                assert not parse_crontab(block.text, identity="").problems
            case "text" if block.follows and self.printed:
                assert self.known.matches(block.text, self.printed), f"{block}\nhere it printed\n{self.printed}"
        if block.language != "python" or block.title:
            self.printed = ""

    def _execute(self, block: Block) -> None:
        if self.module is None:
            self.module = sys.modules["page"] = types.ModuleType("page")
        out = io.StringIO()
        text = self.known.actual("\n" * block.line + block.text)
        with contextlib.redirect_stdout(out):
            exec(compile(text, str(block), "exec"), vars(self.module))
        self.printed = out.getvalue()

    def close(self) -> None:
        """End everything that the page started."""
        for value in [] if self.module is None else list(vars(self.module).values()):
            if isinstance(value, Duly):
                value.close()
        sys.modules.pop("page", None)
        self.session.close()


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """A page in an empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    made = Page(tmp_path)
    yield made
    made.close()


def named(path: Path) -> str:
    """For test ids."""
    return path.relative_to(ROOT).as_posix().removesuffix(".md")


@pytest.mark.timeout(300)  # a page has up to twenty commands
@pytest.mark.parametrize("path", [page for page in PAGES if any(b.language in RUN for b in blocks_of(page))], ids=named)
def test_a_page_is_true(page: Page, path: Path) -> None:
    """What a reader types along a page works, and prints what the page says."""
    blocks = blocks_of(path)
    if shutil.which("curl") is None and any("curl " in block.text for block in blocks):
        pytest.skip("this page uses curl, and the tests need only Python and make")
    for block in blocks:
        page.take(block)


def test_files_of_a_page_are_used() -> None:
    """A snippet that is shown as a file is run by a command of its page, or it would be tested by nothing."""
    for path in PAGES:
        blocks = blocks_of(path)
        typed = " ".join(block.text for block in blocks if block.language == "console")
        for block in blocks:
            stem = Path(block.title).stem
            assert not block.title or block.reason or block.title == "duly.toml" or stem in typed, f"{block}: unused"


def test_scripts_are_tried_or_say_why_not() -> None:
    """A block of shell without a prompt is a file that is used, is tried elsewhere by its name, or has a reason."""
    tried = (ROOT / "tests" / "cluster" / "test_operations.py").read_text()
    for path in PAGES:
        for block in blocks_of(path):
            name = block.text.partition("\n")[0].removeprefix("# tried: ")
            assert (
                block.language not in ("sh", "bash", "shell")
                or block.title
                or block.reason
                or (block.text.startswith("# tried: ") and f'"{name}"' in tried)
            ), f"{block}: nothing runs it"


def test_few_blocks_are_not_run() -> None:
    """What only gets read says why, and is the exception."""
    left = [f"{block}: {block.reason}" for path in PAGES for block in blocks_of(path) if block.reason]
    assert len(left) <= NOT_RUN, left


def counts() -> dict[str, Any]:
    """How much is executed: for reports."""
    blocks = [block for path in PAGES for block in blocks_of(path) if block.language in RUN]
    commands = sum(block.text.count("\n$ ") + 1 for block in blocks if block.language == "console" and not block.reason)
    return {
        "pages": len(PAGES),
        "blocks": len(blocks),
        "not run": sum(bool(block.reason) for block in blocks),
        "commands": commands,
    }


if __name__ == "__main__":
    print(counts())  # noqa: T201 - asked for by hand
