"""The references are what the product says now."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from docs.blocks import ROOT

FOLDER = ROOT / "docs" / "reference"


def generator() -> ModuleType:
    """docs/reference/generate.py, which is a script."""
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["http.md", "cli.md", "python.md", "settings.md"])
def test_a_reference_is_current(name: str) -> None:
    """Whoever changes what a reference describes, runs `make docs`."""
    made = generator()
    text = f"{made.HEAD}\n{made.PAGES[name]().rstrip()}\n"
    assert (FOLDER / name).read_text() == text, "out of date: run `make docs`"
