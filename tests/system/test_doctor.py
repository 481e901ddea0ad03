"""`duly doctor` against real servers with each fault made for real: it names the fault, and the mend."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from duly import Duly
from duly.adapters.system_clock import SystemClock
from duly.cli import run as run_words
from duly.core.instants import SECOND
from duly.core.tokens import Scope
from duly.faces.tokens import create_token
from system.served import Served, until

SECRET = "whsec_" + "A" * 40
# Another release on a machine whose clock is an hour ahead: what it tells of both is what it believes.
STRANGE = (
    "import time, duly.version; real = time.time; time.time = lambda: real() + 3600; "
    "duly.version.__version__ = '0.0.1'; from duly.cli import main; main()"
)

Found = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a webhook that nobody receives."""
    rule = {"name": "pager", "url": "http://127.0.0.1:1/", "secret": SECRET, "events": ["finished"]}
    webhook = msgspec.json.encode([rule | {"allow_private": True}]).decode()
    server = Served(tmp_path_factory.mktemp("doctor") / "data", "--slots", "1", env={"DULY_WEBHOOK": webhook})
    server.start().close()
    yield server
    assert server.stop()[0] == 0


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place without settings."""
    for name in [name for name in os.environ if name.startswith("DULY_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def examined(capsys: pytest.CaptureFixture[str], *words: str) -> Found:
    """What it finds, by check; it ends with 1 if and only if something failed."""
    capsys.readouterr()
    # It runs an event loop of its own, as any command does: in a thread, in case this one has a loop.
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(run_words(["doctor", "--json", *words])))
    thread.start()
    thread.join()
    found: Found = {item["check"]: item for item in msgspec.json.decode(capsys.readouterr().out)["items"]}
    failed = any(item["status"] == "failed" for item in found.values())
    assert codes == [int(failed)]
    assert all(item["advice"] for item in found.values() if item["status"] != "ok")
    return found


def test_a_server_that_does_not_answer_beside_one_that_does(
    served: Served, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each address is asked; the fleet of the one that answers."""
    found = examined(capsys, "--server", f"{served.url},http://127.0.0.1:1")
    assert found[f"server {served.url}"]["status"] == "ok"
    assert found["server http://127.0.0.1:1"]["status"] == "failed"
    assert "duly up" in found["server http://127.0.0.1:1"]["advice"]
    assert {found[check]["status"] for check in ("clock", "token", "workers", "shard s0", "commands")} == {"ok"}


def test_a_webhook_that_is_not_delivered(served: Served, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its name, the problem, and what to try."""
    with Duly(served.url) as duly:
        duly.create(argv=["/bin/false"], schedule="now", retry=1)
        until(lambda: duly.webhooks()[0].failures_in_a_row, what="a failure of the webhook")
    found = examined(capsys, "--server", served.url)["webhook pager"]
    assert found["status"] == "warning"
    assert "127.0.0.1" in found["detail"] or "ConnectError" in found["detail"]
    assert "duly webhook test" in found["advice"]


def test_tokens(served: Served, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """None, a wrong one, an expired one, and one that is taken; each with another mend."""
    file = served.directory / "tokens.json"
    now = SystemClock().wall()

    def made(expires_at: int | None) -> str:
        entropy = os.urandom(38)
        how: dict[str, Any] = {"scope": Scope.READ, "namespaces": ("*",), "now": now - 2 * SECOND}
        return create_token(file, entropy=entropy, expires_at=expires_at, **how)[0]

    good, expired = made(None), made(now - SECOND)
    try:
        until(lambda: examined(capsys, "--server", served.url)["token"]["status"] == "failed", what="tokens in use")
        none = examined(capsys, "--server", served.url)
        assert none["server"]["status"] == "ok"
        assert "none is given" in none["token"]["detail"]
        assert "duly token create" in none["token"]["advice"]
        wrong = examined(capsys, "--server", served.url, "--token", good[:-4] + "AAAA")["token"]
        assert (wrong["status"], "not known" in wrong["detail"]) == ("failed", True)
        late = examined(capsys, "--server", served.url, "--token", expired)["token"]
        assert (late["status"], "expired" in late["detail"]) == ("failed", True)
        assert "duly token list" in late["advice"]
        assert examined(capsys, "--server", served.url, "--token", good)["token"]["status"] == "ok"
    finally:
        file.unlink()
        until(lambda: examined(capsys, "--server", served.url)["token"]["status"] == "ok", what="no tokens in use")


def test_another_version_and_another_time(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A server of another release whose clock is an hour ahead."""
    words = ["up", "--dir", str(home / "data"), "--port", "0", "--json"]
    process = subprocess.Popen([sys.executable, "-c", STRANGE, *words], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as out:
        url = msgspec.json.decode(out.readline())["url"]
        found = examined(capsys, "--server", url)
        process.terminate()
        assert process.wait(30) == 0
    assert (found["server"]["status"], "0.0.1" in found["server"]["detail"]) == ("warning", True)
    assert "same on both sides" in found["server"]["advice"]
    assert found["clock"]["status"] == "warning"
    assert "ahead" in found["clock"]["detail"]
    assert "chrony" in found["clock"]["advice"]


def test_settings_and_directory(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake in the settings ends the examination; a directory that is a file, and a secret that is not there."""
    server = ("--server", "http://127.0.0.1:1")
    (home / "duly.toml").write_text("prot = 1")
    found = examined(capsys, *server)
    assert (list(found)[-1], found["settings"]["status"]) == ("settings", "failed")
    assert "'prot'" in found["settings"]["detail"]
    rule = '[[webhook]]\nurl = "https://example.com/"\nsecret_file = "nothing"\n'
    (home / "duly.toml").write_text(f'dir = "file"\n{rule}')
    (home / "file").write_text("")
    found = examined(capsys, *server)
    assert (found["directory"]["status"], found["webhooks"]["status"]) == ("failed", "failed")
    assert "/webhook/0/secret_file" in found["webhooks"]["detail"]


def test_a_full_disk_that_runs_nothing_and_few_open_files(home: Path) -> None:
    """A small file system mounted noexec, under a low limit of open files."""
    script = 'mount -t tmpfs -o noexec,size=2m tmpfs "$1" && ulimit -n 100 && exec "$2" -m duly.cli doctor --json'
    private = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*private, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here")
    (home / "data").mkdir()
    environment = {**os.environ, "DULY_DIR": str(home / "data"), "DULY_SERVER": "http://127.0.0.1:1"}
    done = subprocess.run(
        [*private, "sh", "-c", script, "sh", str(home / "data"), sys.executable],
        capture_output=True,
        env=environment,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    found: Found = {item["check"]: item for item in msgspec.json.decode(done.stdout)["items"]}
    assert (found["disk"]["status"], "make room" in found["disk"]["advice"]) == ("warning", True)
    assert (found["open files"]["status"], "LimitNOFILE" in found["open files"]["advice"]) == ("warning", True)
    assert (found["commands"]["status"], "noexec" in found["commands"]["advice"]) == ("failed", True)
