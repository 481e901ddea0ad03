"""Links between pages lead somewhere, anchors included."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.blocks import PAGES, ROOT

LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
HEADING = re.compile(r"^#{1,6} (.+)$", re.M)


def prose(path: Path) -> str:
    """The page without its code."""
    return FENCE.sub("", path.read_text())


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub and Zensical give to headings."""
    found = set()
    for heading in HEADING.findall(prose(path)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        found.add(re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    """No link of a page is broken."""
    for target in LINK.findall(re.sub(r"`[^`\n]*`", "", prose(path))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), f"{path.relative_to(ROOT)} links {target}, which is not there"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{path.relative_to(ROOT)} links {target}: no such heading"


def test_the_index_leads_everywhere() -> None:
    """Every page but the decisions can be reached from docs/README.md by links."""
    reached: set[Path] = set()
    ahead = [ROOT / "docs" / "README.md"]
    while ahead:
        path = ahead.pop()
        if path in reached or path.suffix != ".md" or not path.is_relative_to(ROOT / "docs"):
            continue
        reached.add(path)
        names = [target.partition("#")[0] for target in LINK.findall(prose(path)) if not re.match(r"[a-z]+:", target)]
        ahead += [(path.parent / name).resolve() for name in names if name]
    lost = {page for page in PAGES if page.is_relative_to(ROOT / "docs")} - reached
    strays = [page.name for page in lost if page.parent.name != "decisions"]
    assert not strays, f"link them from docs/README.md or a page that it leads to: {strays}"
