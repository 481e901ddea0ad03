"""What `deploy/` offers, each file checked by the tool that will read it.

Here a check is skipped when its tool is not installed; with DULY_DEPLOY=required, as in CI, that is a failure.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from duly.settings import load
from duly.telemetry import Telemetry

DEPLOY = Path(__file__).parents[2] / "deploy"


def tool(*names: str) -> str:
    """The program, by the first of its names that is there."""
    for name in names:
        found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
        if found is not None:
            return found
    if os.environ.get("DULY_DEPLOY") == "required":
        pytest.fail(f"{names[0]} is not installed")
    pytest.skip(f"{names[0]} is not installed")


def check(*command: str | Path, cwd: Path = DEPLOY, **environment: str) -> str:
    """Run a checker; what it said, which is told if it found something."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("path", ["haproxy/haproxy.cfg", "docker/haproxy.cfg"])
def test_haproxy_takes_its_configuration(path: str) -> None:
    """Without an alert."""
    assert "ALERT" not in check(tool("haproxy"), "-c", "-f", DEPLOY / path)


def test_prometheus_takes_alerts_and_configuration() -> None:
    """And the alerts fire when they should, and only then."""
    promtool = tool("promtool")
    folder = DEPLOY / "prometheus"
    check(promtool, "check", "rules", "alerts.yaml", cwd=folder)
    check(promtool, "test", "rules", "alerts_test.yaml", cwd=folder)
    check(promtool, "check", "config", "--syntax-only", "prometheus.yaml", cwd=folder)


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """And finds the roles that need nothing of the machine walled in well."""
    analyze = tool("systemd-analyze")
    program = Path(sys.executable).with_name("duly")
    for path in (DEPLOY / "systemd").iterdir():
        text = path.read_text().replace("/opt/duly/bin/duly", str(program))
        (tmp_path / path.name).write_text(text)
    units = sorted(str(path) for path in tmp_path.iterdir())
    assert check(analyze, "verify", "--man=no", *units, cwd=tmp_path) == ""
    for role, most in (("servicer", "20"), ("scheduler", "20"), ("worker", "60")):
        unit = str(tmp_path / f"duly-{role}.service")
        check(analyze, "security", "--offline=yes", "--no-pager", f"--threshold={most}", unit, cwd=tmp_path)


def test_docker_compose_takes_its_file() -> None:
    """With the variables of the example, and not without them."""
    compose = tool("docker-compose")
    folder = DEPLOY / "docker"
    done = check(compose, "--env-file", "example.env", "-f", "docker-compose.yaml", "config", cwd=folder)
    services = yaml.safe_load(done)["services"]
    assert {"servicer1", "servicer2", "scheduler1", "worker1", "haproxy", "migrate"} <= set(services)
    assert not any("DULY_STORES" in services[name]["environment"] for name in ("worker1", "worker2"))


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every Kubernetes object, with its file."""
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            yield path.name, document


def test_kubernetes_takes_the_manifests() -> None:
    """By the API's own schemas, strictly: no field that it would ignore."""
    for _, document in documents():
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_kubernetes_roles_have_probes_and_budgets() -> None:
    """And a pod whose processes are not root, and have no way to become it."""
    found = {document["metadata"]["name"]: document for _, document in documents() if document["kind"] == "Deployment"}
    budgets = {document["metadata"]["name"] for _, document in documents() if document["kind"] == "PodDisruptionBudget"}
    assert set(found) == budgets == {"duly-servicer", "duly-scheduler", "duly-worker"}
    for document in found.values():
        pod = document["spec"]["template"]["spec"]
        [container] = pod["containers"]
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container)
        assert pod["securityContext"]["runAsNonRoot"]
        assert not container["securityContext"]["allowPrivilegeEscalation"]
    worker = found["duly-worker"]["spec"]["template"]["spec"]["containers"][0]
    assert not any(variable["name"].startswith("DULY_STORES") for variable in worker["env"])


def test_settings_of_the_examples_are_settings(tmp_path: Path) -> None:
    """Of the ConfigMap, of the units and of docker-compose: duly knows each of them."""
    [toml] = [document["data"]["duly.toml"] for _, document in documents() if document["kind"] == "ConfigMap"]
    (tmp_path / "duly.toml").write_text(toml)
    load(path=tmp_path / "duly.toml", environ={})
    known = {f"DULY_{one.name.upper()}" for one in load(environ={})}
    known |= {f"{name}_FILE" for name in known} | {"DULY_CONFIG"}
    own = {"DULY_IMAGE", "DULY_WORKER_TOKEN"}  # docker-compose's
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            named = set(re.findall(r"\bDULY_[A-Z0-9_]+\b", path.read_text()))
            assert named <= known | own, f"{path}: {named - known - own}"


# -- metrics ------------------------------------------------------------------------------------------------


def queries() -> list[str]:
    """Those of the dashboard, the variables of Grafana filled in."""
    board = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return [expr.replace("$__rate_interval", "1m").replace("$__range", "1h") for expr in found]


def test_the_dashboard_asks_in_promql(tmp_path: Path) -> None:
    """Each query is one that Prometheus takes; and lateness comes first."""
    rules = [{"record": f"dashboard:query:{index}", "expr": expr} for index, expr in enumerate(queries())]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    check(tool("promtool"), "check", "rules", "rules.yaml", cwd=tmp_path)
    board = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    first = min(board["panels"], key=lambda panel: (panel["gridPos"]["y"], panel["gridPos"]["x"]))
    assert "late" in first["title"].lower()
    places = [panel["gridPos"] for panel in board["panels"]]
    cells = [
        (x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"


def test_alerts_and_dashboard_name_metrics_that_exist() -> None:
    """None that duly does not tell."""
    telemetry = Telemetry()
    telemetry.watch_broker({"published": 1})
    told: set[str] = set()
    for line in telemetry.render()[0].decode().splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            told |= {name} if kind != "histogram" else {f"{name}_bucket", f"{name}_count", f"{name}_sum"}
    texts = [*queries(), (DEPLOY / "prometheus" / "alerts.yaml").read_text()]
    named = {name for text in texts for name in re.findall(r"\bduly_[a-z_]+\b", text)}
    assert named <= told, named - told
    assert len(named) >= 8
