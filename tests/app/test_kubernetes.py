"""ops/kubernetes/: the manifests fit one another, the settings, the probes and the metrics."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from settings import Settings, variable_name
from tests.support.compose import COMPOSE, ROOT, services
from tests.support.servers import run
from worker.process.policy import SupervisorOptions

pytestmark = pytest.mark.unit

HOME = ROOT / "ops" / "kubernetes"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def read(name: str) -> Any:
    return yaml.safe_load((HOME / name).read_text(encoding="utf-8"))


def pod() -> Any:
    return read("workers.yaml")["spec"]["template"]


def container() -> Any:
    (only,) = pod()["spec"]["containers"]
    return only


def variables() -> dict[str, str]:
    (generated,) = read("kustomization.yaml")["configMapGenerator"]
    (reference,) = container()["envFrom"]
    assert reference["configMapRef"]["name"] == generated["name"]
    literals = dict(line.split("=", 1) for line in generated["literals"])
    return literals | {row["name"]: row["value"] for row in container()["env"]}


def test_every_manifest_is_part_of_a_kustomization() -> None:
    for home in (HOME, HOME / "keda"):
        named = yaml.safe_load((home / "kustomization.yaml").read_text())["resources"]
        files = {path.name for path in home.glob("*.yaml")} - {"kustomization.yaml"}
        assert set(named) - {".."} == files


def test_manifests_are_valid_by_the_schemas_of_kubernetes(tmp_path: Path) -> None:
    # Not among our dependencies: the schemas of all its releases take 108 MB.
    program = shutil.which("kubernetes-validate")
    if program is None:
        pytest.skip("no schemas of Kubernetes: pip install kubernetes-validate")
    files = [str(HOME / name) for name in read("kustomization.yaml")["resources"]]
    assert run([program, "--strict", *files]).returncode == 0
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((HOME / "workers.yaml").read_text().replace("replicas:", "replica:"))
    assert run([program, "--strict", str(wrong)]).returncode != 0


def test_every_variable_of_a_pod_is_a_setting() -> None:
    known = {variable_name(field) for field in Settings.model_fields} | {"LETTA_SECRETS_DIR"}
    assert set(variables()) <= known
    (mounted,) = (m for m in container()["volumeMounts"] if m["name"] == "secrets")
    assert variables()["LETTA_SECRETS_DIR"] == mounted["mountPath"]


def test_a_pod_is_killed_only_after_its_drain() -> None:
    grace_s = float(variables()["LETTA_WORKER_SHUTDOWN_GRACE_S"])
    given_s = pod()["spec"]["terminationGracePeriodSeconds"]
    assert given_s > grace_s + SupervisorOptions().kill_margin_s


def test_probes_ask_documented_paths_at_the_port_that_listens() -> None:
    (port,) = container()["ports"]
    assert variables()["LETTA_WEB_LISTEN"].endswith(f":{port['containerPort']}")
    paths = {}
    for kind in ("livenessProbe", "readinessProbe", "startupProbe"):
        asked = container()[kind]["httpGet"]
        assert asked["port"] == port["name"]
        assert f"| `{asked['path']}` |" in OPERATIONS
        paths[kind] = asked["path"]
    # An outage of the queue's server must not restart the pods.
    assert paths["livenessProbe"] == "/healthz"


def test_a_pod_has_the_rights_of_the_compose_service_and_no_more() -> None:
    context, service = container()["securityContext"], services()["letta-workers"]
    assert context["readOnlyRootFilesystem"] is service["read_only"] is True
    assert context["capabilities"]["drop"] == service["cap_drop"] == ["ALL"]
    assert context["allowPrivilegeEscalation"] is False
    assert f"USER {context['runAsUser']}:" in (COMPOSE / "Dockerfile").read_text()
    assert pod()["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod()["spec"]["automountServiceAccountToken"] is False


def test_budget_and_scaling_mean_the_workers() -> None:
    workers = read("workers.yaml")
    labels = workers["spec"]["selector"]["matchLabels"]
    assert pod()["metadata"]["labels"] == labels
    assert read("disruption.yaml")["spec"]["selector"]["matchLabels"] == labels
    scaling = read("keda/scaling.yaml")["spec"]
    assert scaling["scaleTargetRef"]["name"] == workers["metadata"]["name"]
    assert scaling["minReplicaCount"] >= workers["spec"]["replicas"] > 1
    for trigger in scaling["triggers"]:
        for metric in re.findall(r"letta_\w+", trigger["metadata"]["query"]):
            assert f"`{metric}`" in OPERATIONS
