"""Every cut of a recorded store, printed: `python tests/soak/power_loss.py [rounds]`."""

from __future__ import annotations

import asyncio
import collections
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from system.power import cuts, frames, record, reopened


async def main() -> int:
    """A cut that leaves anything else than the last whole commit raises."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    with tempfile.TemporaryDirectory(prefix="duly-power-") as name:
        folder = Path(name)
        recording = await record(folder, rounds)
        kinds: collections.Counter[str] = collections.Counter()
        for number, cut in enumerate(cuts(recording, every=1)):
            await reopened(folder / "cut", cut, with_store=number % 5 == 0)
            kinds[" ".join(word for word in cut.name.split() if not word.isdigit())] += 1
    commits = len(recording.commits) + len(recording.second_commits) - 2
    sys.stdout.write(
        f"power loss: {commits} acknowledged commits in {frames(recording)} frames; {kinds.total()} cuts\n"
    )
    for kind, count in kinds.items():
        sys.stdout.write(f"  {count:6} {kind} …\n")
    sys.stdout.write(
        "each left exactly the last whole commit: 0 acknowledged writes missing, 0 half applied, 0 corrupt\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
