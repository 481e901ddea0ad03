"""Every hostile command against one server, as a table: `python tests/soak/hostile_table.py`."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from system.hostile import CASES, DEVICE, LARGE, carry_out, rss
from system.served import Served


def main() -> int:
    """Prints a row for each case; a case that ends otherwise than it has to raises."""
    write = sys.stdout.write
    with tempfile.TemporaryDirectory(prefix="duly-hostile-") as folder:
        served = Served(Path(folder) / "data", "--slots", "2", env={"DULY_GRACE": "500ms"})
        with served.start() as duly:
            [scratch] = (Path(folder) / "data" / "scratch").iterdir()
            before = rss(served.pid)
            write(f"{'command':<56} {'took':>6} {'server':>9} {'next late':>9}  end\n")
            cases = [*CASES, *LARGE, *([DEVICE] if os.getuid() == 0 else [])]
            for case in cases:
                row = carry_out(duly, case, served.pid, scratch)
                write(f"{row.name:<56} {row.took:5.1f}s {row.grew:+6.1f}MiB {row.next_late:7.1f}ms  {row.end}\n")
                sys.stdout.flush()
            write(f"{len(cases)} hostile commands, 0 processes left, the server {rss(served.pid) - before:+.1f} MiB\n")
        status, stderr = served.stop()
        assert status == 0, stderr
    return 0


if __name__ == "__main__":
    sys.exit(main())
