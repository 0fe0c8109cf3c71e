"""The example for KServe repeats the chart's pod; Kubernetes's schema judges it. KServe itself has none here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
OWN = {"minReplicas"}
"""What KServe adds to a pod's fields, of those that the example has."""
NOT_REPEATED = {"serviceAccountName", "topologySpreadConstraints"}
"""What the chart has for its own account and its own labels."""


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    (block,) = re.findall(
        r"^```yaml\n(.*?)^```$", (DEPLOY / "docs" / "kserve.md").read_text(), re.MULTILINE | re.DOTALL
    )
    return dict(yaml.safe_load(block))


@pytest.fixture(scope="module")
def pod(service) -> dict[str, Any]:
    return {name: value for name, value in service["spec"]["predictor"].items() if name not in OWN}


def test_kubernetes_takes_its_pod(pod):
    """Strictly; and the test would notice a misspelt key."""
    document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "equipoise"}, "spec": pod}
    kubernetes_validate.validate(document, "1.37", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**document, "spec": {**pod, "volume": []}}, "1.37", strict=True)


def test_it_is_the_charts_pod(pod):
    """Field by field, but for the names that KServe wants: the chart's own tests hold for it."""
    with helm_python.Chart.load(DEPLOY / "helm" / "equipoise") as chart:
        documents = chart.render({}, name="equipoise", namespace="imaging")
    (text,) = (text for path, text in documents.items() if path.endswith("/server.yaml"))
    (server,) = (each for each in yaml.safe_load_all(text) if each and each["kind"] == "Deployment")
    charts = {name: value for name, value in server["spec"]["template"]["spec"].items() if name not in NOT_REPEATED}
    (theirs,), (ours,) = charts.pop("containers"), [*pod["containers"]]
    assert {name: value for name, value in pod.items() if name != "containers"} == charts
    assert [(port["name"], port["containerPort"]) for port in ours["ports"]] == [
        (port["name"], port["containerPort"]) for port in theirs["ports"]
    ]
    apart = {"name", "ports", "imagePullPolicy"}
    assert {name: value for name, value in ours.items() if name not in apart} == {
        name: value for name, value in theirs.items() if name not in apart
    }


def test_kserve_knows_the_container_and_its_port(service, pod):
    """The names that its controller looks for: the first port is the service's, and speaks HTTP/2 by its name."""
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    (container,) = pod["containers"]
    assert container["name"] == "kserve-container" and container["ports"][0]["name"] == "grpc"
