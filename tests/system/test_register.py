"""Who may register an app's jobs: what deploys it, not its workers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from duly.core.tokens import Scope
from duly.faces.tokens import FILE_NAME, create_token
from system.served import Served

APP = """
from duly import Duly
duly = Duly("http://127.0.0.1:1")
@duly.job(schedule="every 1h", priority={priority})
def tidy(): ...
"""


def test_a_deployment_registers_with_operate_and_a_worker_does_not(tmp_path: Path) -> None:
    """Made, left, brought up to date; a refusal says which scope registering takes."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    tokens = {
        scope: create_token(
            data / FILE_NAME,
            entropy=bytes([scope]) * 38,
            scope=scope,
            namespaces=("*",) if scope is Scope.WORKER else ("reports",),
            now=1,
        )[0]
        for scope in (Scope.WORKER, Scope.SUBMIT, Scope.OPERATE)
    }
    served = Served(data)
    served.start()

    def register(scope: Scope, priority: int) -> subprocess.CompletedProcess[str]:
        (tmp_path / "office.py").write_text(APP.format(priority=priority))
        words = ["register", "office:duly", "--json", "--server", served.url, "--token", tokens[scope]]
        return subprocess.run(
            [sys.executable, "-B", "-m", "duly.cli", *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    try:
        refused = register(Scope.WORKER, 5)
        assert (refused.returncode, refused.stdout) == (1, "")
        problem = msgspec.json.decode(refused.stderr)
        assert problem["code"] == "forbidden"
        assert "takes a token of scope operate" in problem["detail"]
        assert "--scope operate" in problem["advice"]
        made = register(Scope.OPERATE, 5)
        assert made.returncode == 0, made.stderr
        assert register(Scope.OPERATE, 5).stdout == made.stdout, "the same job"
        assert register(Scope.SUBMIT, 7).returncode == 1, "submit does not change jobs"
        assert register(Scope.OPERATE, 7).stdout == made.stdout
    finally:
        served.stop()
