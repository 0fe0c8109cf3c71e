"""The Helm chart, linted, rendered and checked without a cluster: by Helm's own library and Kubernetes's schemas.

ServiceMonitor, PrometheusRule and ScaledObject are no part of Kubernetes and have no schema here: their fields are
asserted (and were once checked against the operators' own definitions), their rules by promtool.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from equipoise_deploy.serving.command import serve_command
from typer import Typer
from typer.testing import CliRunner

DEPLOY = Path(__file__).parents[2] / "deploy"
CHART = DEPLOY / "helm" / "equipoise"
CASES = sorted((CHART / "ci").glob("*-values.yaml"))
KUBERNETES = ("1.36", "1.37")
FOREIGN = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}

SERVE = Typer()
SERVE.command()(serve_command)

Object = dict[str, Any]

needs_haproxy = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="haproxy is not installed: `bash deploy/system-packages.sh`"
)


def values_of(path: Path) -> Object:
    return yaml.safe_load(path.read_text()) or {}


@pytest.fixture(scope="module")
def chart() -> Iterator[helm_python.Chart]:
    with helm_python.Chart.load(CHART) as loaded:
        yield loaded


@pytest.fixture(scope="module", params=CASES, ids=lambda path: path.stem.removesuffix("-values"))
def values(request) -> Object:
    """One combination of ci/."""
    return values_of(request.param)


def rendered(chart: helm_python.Chart, values: Object, name: str = "equipoise") -> list[Object]:
    """Every object that an installation would create."""
    documents = chart.render(values, name=name, namespace="imaging")
    texts = [text for path, text in documents.items() if not path.endswith("NOTES.txt")]
    return [each for text in texts for each in yaml.safe_load_all(text) if each]


@pytest.fixture(scope="module")
def objects(chart, values) -> list[Object]:
    return rendered(chart, values)


def of(objects: list[Object], kind: str, component: str = "") -> list[Object]:
    return [
        each
        for each in objects
        if each["kind"] == kind
        and component in ("", each["metadata"]["labels"]["app.kubernetes.io/component"])
    ]  # fmt: skip


def pods(objects: list[Object]) -> list[Object]:
    return [each["spec"]["template"]["spec"] for each in of(objects, "Deployment")]


def containers(objects: list[Object]) -> list[Object]:
    return [each for pod in pods(objects) for each in (*pod.get("initContainers", ()), *pod["containers"])]


def test_lint_finds_nothing(values):
    """Strictly: no warning, no error."""
    report = helm_python.lint(CHART, values, strict=True)
    assert not report["errors"] and not [each for each in report["messages"] if each["severity"] > 1], report


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_every_object(objects, version):
    """Strictly: no unknown field. What has no schema there is one of three kinds."""
    for each in objects:
        if each["kind"] not in FOREIGN:
            kubernetes_validate.validate(each, version, strict=True)
    assert of(objects, "Deployment", "server")


def test_every_pod_keeps_to_the_restricted_profile(objects):
    """Unprivileged, read-only, no capabilities, no token; nothing of the node."""
    for pod in pods(objects):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] and context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not [each for each in pod["volumes"] if "hostPath" in each]
    for container in containers(objects):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not [port for port in container.get("ports", ()) if "hostPort" in port]


def test_every_container_has_limits(objects):
    """Processor and memory, of both; memory not above what was asked for where Triton runs."""
    for container in containers(objects):
        for bound in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(container["resources"][bound]), container["name"]
    (server,) = of(objects, "Deployment", "server")
    (triton,) = server["spec"]["template"]["spec"]["containers"]
    assert triton["resources"]["requests"]["memory"] == triton["resources"]["limits"]["memory"]


def test_triton_serves_under_the_supervisor(objects, values):
    """Flags, telemetry, shared memory with a size, models that cannot be written, a GPU or none."""
    (server,) = of(objects, "Deployment", "server")
    pod = server["spec"]["template"]["spec"]
    (triton,) = pod["containers"]
    assert triton["args"][:2] == ["serve", "/models"]
    known = CliRunner().invoke(SERVE, ["--help"], env={"COLUMNS": "200"}).output
    assert all(each.split("=")[0] in known for each in triton["args"][2:] if each.split("=")[0] != "--trust")
    environment = {each["name"]: each["value"] for each in triton["env"]}
    assert environment["ORT_DISABLE_TELEMETRY"] == "1" and environment["NVIDIA_TF32_OVERRIDE"] == "0"
    assert "--allow-client-shm=false" in environment["EQUIPOISE_TRITON_OPTIONS"]
    gpu = values.get("mode", "gpu") == "gpu"
    assert environment["EQUIPOISE_TRITON_CONFIG"] == ("" if gpu else "cpu")
    assert ("nvidia.com/gpu" in triton["resources"]["limits"]) is gpu
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert volumes["shared-memory"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
    mounts = {each["mountPath"]: each for each in triton["volumeMounts"]}
    assert mounts["/dev/shm"]["name"] == "shared-memory"
    if values.get("models", {}).get("source", "image") != "image":
        assert mounts["/models"]["readOnly"]
    assert {each["name"] for each in triton["volumeMounts"]} <= set(volumes)
    if values.get("models", {}).get("trust"):
        assert "--trust=/trust/release.pub" in triton["args"] and mounts["/trust"]["readOnly"]
    asked = [each for each in triton["args"] if each.startswith("--close-on-alarm")]
    assert bool(asked) is ("closeOnAlarm" in values)
    if asked:
        assert asked == ["--close-on-alarm=/audit/decisions.jsonl"] and mounts["/audit"]["subPath"] == "equipoise"
        claim = {"claimName": "audit-log", "readOnly": True}
        assert mounts["/audit"]["readOnly"] and volumes["audit"]["persistentVolumeClaim"] == claim


def test_a_mig_instance_can_be_asked_for(chart):
    """By its own resource, in requests and limits; the device plugin passes its capability files in."""
    (server,) = of(rendered(chart, {"gpu": {"resource": "nvidia.com/mig-1g.10gb"}}), "Deployment", "server")
    (triton,) = server["spec"]["template"]["spec"]["containers"]
    for bound in triton["resources"].values():
        assert bound["nvidia.com/mig-1g.10gb"] == 1 and "nvidia.com/gpu" not in bound


def test_probes_ask_for_inference_and_liveness_is_patient(objects):
    """All go to the health port. Liveness gives the supervisor minutes to repair, and draining has its time."""
    (server,) = of(objects, "Deployment", "server")
    pod = server["spec"]["template"]["spec"]
    (triton,) = pod["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert triton[probe]["httpGet"] == {"path": "/healthz", "port": "health"}
    liveness = triton["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 120
    (drain,) = (int(each.split("=")[1]) for each in triton["args"] if each.startswith("--drain-seconds"))
    assert pod["terminationGracePeriodSeconds"] >= drain + 60


def test_triton_reaches_nothing_and_is_reached_by_the_proxy_only(objects, values):
    """Egress is denied, but for a store's addresses; clients get to the proxy, never past it."""
    policies = {
        each["metadata"]["labels"]["app.kubernetes.io/component"]: each["spec"] for each in of(objects, "NetworkPolicy")
    }
    if not values.get("networkPolicy", {}).get("enabled", True):
        assert not policies
        return
    server = policies["server"]
    assert set(server["policyTypes"]) == {"Ingress", "Egress"}
    if values.get("models", {}).get("source") == "objectStore":
        store, names = server["egress"]
        assert store["to"] == [{"ipBlock": {"cidr": "10.1.2.3/32"}}] and store["ports"] == [
            {"port": 9000, "protocol": "TCP"}
        ]
        assert {each["port"] for each in names["ports"]} == {53}
    else:
        assert server["egress"] == []
    asked, *read = server["ingress"]
    assert asked["from"] == [
        {
            "podSelector": {
                "matchLabels": {
                    "app.kubernetes.io/name": "equipoise",
                    "app.kubernetes.io/instance": "equipoise",
                    "app.kubernetes.io/component": "haproxy",
                }
            }
        }
    ]
    assert {each["port"] for each in asked["ports"]} == {8001, 8003}
    assert [each["port"] for rule in read for each in rule["ports"]] == [8002]
    for policy in policies.values():
        selected = policy["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
        labels = [each["spec"]["template"]["metadata"]["labels"] for each in of(objects, "Deployment", selected)]
        assert labels and all(policy["podSelector"]["matchLabels"].items() <= each.items() for each in labels)
        for rule in (*policy["ingress"], *policy["egress"]):
            assert rule.get("from") or rule.get("to"), "an empty list of peers would mean everybody"
    if values.get("haproxy", {}).get("enabled", True):
        assert {each["port"] for rule in policies["haproxy"]["egress"] for each in rule["ports"]} == {8001, 8003, 53}


def test_services_and_budgets_select_what_is_there(objects):
    """Every selector finds the pods of one deployment, and every named port is one of theirs."""
    deployments = {each["metadata"]["name"]: each["spec"]["template"] for each in of(objects, "Deployment")}
    for each in (*of(objects, "Service"), *of(objects, "PodDisruptionBudget")):
        selector = each["spec"]["selector"]
        selector = selector.get("matchLabels", selector)
        found = [
            template for template in deployments.values() if selector.items() <= template["metadata"]["labels"].items()
        ]
        assert len(found) == 1, each["metadata"]["name"]
        names = {port["name"] for container in found[0]["spec"]["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in each["spec"].get("ports", ())} <= names
    assert len(of(objects, "PodDisruptionBudget")) == len(deployments)


def test_what_kubernetes_does_not_know_says_what_it_must(objects, values):
    """Jobs have the names that rules and dashboard use, the rules are ours, scaling goes by time in the queue."""
    wanted = values.get("monitoring", {})
    monitors = of(objects, "ServiceMonitor")
    assert bool(monitors) is wanted.get("serviceMonitors", False)
    jobs = {each["metadata"]["labels"].get("equipoise.io/job") for each in of(objects, "Service")}
    for monitor in monitors:
        assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
        assert monitor["spec"]["jobLabel"] == "equipoise.io/job"
        assert monitor["spec"]["selector"]["matchLabels"]["equipoise.io/job"] in jobs
        assert [each["port"] for each in monitor["spec"]["endpoints"]] == ["metrics"]
    for rules in of(objects, "PrometheusRule"):
        groups = [
            group
            for name in ("recording", "alerts")
            for group in yaml.safe_load((DEPLOY / "prometheus" / "rules" / f"{name}.yml").read_text())["groups"]
        ]
        assert rules["spec"]["groups"] == groups
    scaling = values.get("autoscaling", {}).get("type", "none")
    (server,) = of(objects, "Deployment", "server")
    assert ("replicas" in server["spec"]) is (scaling == "none")
    for each in (*of(objects, "ScaledObject"), *of(objects, "HorizontalPodAutoscaler")):
        assert each["spec"]["scaleTargetRef"]["name"] == server["metadata"]["name"]
    for each in of(objects, "ScaledObject"):
        (trigger,) = each["spec"]["triggers"]
        assert each["apiVersion"] == "keda.sh/v1alpha1" and trigger["type"] == "prometheus"
        assert "equipoise:queue_seconds:mean5m" in trigger["metadata"]["query"]


def test_the_proxy_is_deploys_own(chart, objects, values):
    """Configuration, rules and dashboard are the files that are tested elsewhere: links, and the same bytes."""
    for link in (CHART / "files").iterdir():
        assert link.is_symlink() and link.resolve().is_file() and link.resolve().is_relative_to(DEPLOY)
    for each in of(objects, "ConfigMap", "haproxy"):
        text = each["data"]["haproxy.cfg"]
        assert text.strip() == (DEPLOY / "haproxy" / "haproxy.cfg").read_text().strip()
    assert bool(of(objects, "ConfigMap", "haproxy")) is values.get("haproxy", {}).get("enabled", True)


@pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="haproxy is not installed: `bash deploy/system-packages.sh`"
)
@pytest.mark.parametrize("canary", ["", "equipoise-next"])
def test_haproxy_takes_its_configuration_as_the_pod_would(chart, tmp_path, canary):
    """With the environment of the pod: names that are asked again and again, and a canary's weight."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    objects = rendered(chart, {"canary": {"release": canary, "weight": 7}})
    (proxy,) = of(objects, "Deployment", "haproxy")
    (container,) = proxy["spec"]["template"]["spec"]["containers"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert environment["EQUIPOISE_REPLICAS"] == "equipoise-server.imaging.svc.cluster.local"
    assert environment.get("EQUIPOISE_CANARY") == (f"{canary}-server.imaging.svc.cluster.local" if canary else None)
    environment |= {
        "EQUIPOISE_CERTIFICATE": str(tmp_path / "server.pem"),
        "EQUIPOISE_CLIENT_CA": str(tmp_path / "ca.pem"),
        "PATH": os.environ["PATH"],
    }
    (configuration,) = of(objects, "ConfigMap", "haproxy")
    (tmp_path / "haproxy.cfg").write_text(configuration["data"]["haproxy.cfg"])
    done = subprocess.run(
        ["haproxy", "-c", "-f", tmp_path / "haproxy.cfg"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "[WARNING]" not in done.stderr, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["equipoise", "site", "a" * 53, f"{'a' * 40}-{'b' * 12}"])
def test_the_proxy_asks_for_the_service_that_there_is(chart, name):
    """Also where Helm's longest name of a release is cut for the objects'."""
    objects = rendered(chart, {}, name=name)
    (proxy,) = of(objects, "Deployment", "haproxy")
    environment = {each["name"]: each["value"] for each in proxy["spec"]["template"]["spec"]["containers"][0]["env"]}
    asked = environment["EQUIPOISE_REPLICAS"]
    assert asked.partition(".")[0] in {each["metadata"]["name"] for each in objects if each["kind"] == "Service"}


def test_a_canary_and_the_stable_release_find_each_other(chart):
    """The stable proxy may reach the canary's pods by the labels and the name that the canary has."""
    stable = rendered(chart, {"canary": {"release": "equipoise-next", "weight": 10}})
    canary = rendered(chart, {"haproxy": {"enabled": False}, "canaryOf": "equipoise"}, name="equipoise-next")
    assert not of(canary, "Deployment", "haproxy")
    (server,) = of(canary, "Deployment", "server")
    labels = server["spec"]["template"]["metadata"]["labels"]
    (policy,) = of(stable, "NetworkPolicy", "haproxy")
    peers = [each["podSelector"]["matchLabels"] for each in policy["spec"]["egress"][0]["to"]]
    assert any(peer.items() <= labels.items() for peer in peers)
    (proxy,) = of(stable, "Deployment", "haproxy")
    (policy,) = of(canary, "NetworkPolicy", "server")
    (peer,) = policy["spec"]["ingress"][0]["from"]
    assert peer["podSelector"]["matchLabels"].items() <= proxy["spec"]["template"]["metadata"]["labels"].items()
    environment = {each["name"]: each["value"] for each in proxy["spec"]["template"]["spec"]["containers"][0]["env"]}
    names = [each["metadata"]["name"] for each in of(canary, "Service", "server")]
    assert environment["EQUIPOISE_CANARY"].split(".")[0] in names


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"mode": "tpu"}, "mode"),
        ({"replicas": 0}, "replicas"),
        ({"closeOnAlarm": {"claim": "audit", "log": "../decisions.jsonl"}}, "log"),
        ({"replica": 2}, "replica"),
        ({"image": {"digest": "latest"}}, "digest"),
        ({"models": {"source": "volume"}}, "claim"),
        ({"models": {"source": "objectStore"}}, "remote"),
        ({"models": {"source": "oci"}}, "image"),
        ({"models": {"source": "ftp"}}, "source"),
        ({"haproxy": {"tls": {"serverSecret": ""}}}, "serverSecret"),
        ({"haproxy": {"enabled": False}}, "canaryOf"),
        ({"haproxy": {"settings": {"EQUIPOISE_PROXY": ":80"}}}, "EQUIPOISE_PROXY"),
        ({"resources": {"limits": {"memory": "lots"}}}, "memory"),
        ({"resources": {"limits": None}}, "limits"),
        ({"sharedMemory": "64"}, "sharedMemory"),
        ({"tritonOptions": "--allow-client-shm=true"}, "tritonOptions"),
        ({"probes": {"liveness": {"failureThreshold": 1}}}, "failureThreshold"),
        ({"canary": {"weight": 300}}, "weight"),
        ({"networkPolicy": {"clients": [{}]}}, "clients"),
        ({"securityContext": {"privileged": True}}, "securityContext"),
        ({"autoscaling": {"type": "vpa"}}, "type"),
    ],
)
def test_schema_refuses_what_cannot_be_right_and_names_it(chart, wrong, word):
    """Wrong values, unknown keys, what would open a hole; the message names the key."""
    with pytest.raises(helm_python.HelmValuesError, match=word):
        chart.validate_schema(wrong)


def test_every_default_is_described_by_the_schema(chart, values):
    """The defaults and every combination of ci/ pass."""
    chart.validate_schema({})
    chart.validate_schema(values)


def test_notes_warn_of_what_is_left_open(chart):
    """No policies, no signatures, no digest."""

    def notes(values: Object) -> str:
        documents = chart.render(values, name="equipoise", namespace="imaging")
        return next(text for path, text in documents.items() if path.endswith("NOTES.txt"))

    assert "WARNING: no network policies" in notes({"networkPolicy": {"enabled": False}})
    assert "signatures are not asked for" in notes({"models": {"source": "oci", "oci": {"image": "x/models:1"}}})
    digest = "sha256:" + "0" * 64
    assert "WARNING" not in notes({"image": {"digest": digest}}) and "Pin" not in notes({"image": {"digest": digest}})


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_takes_the_rules_as_the_operator_gets_them(chart, tmp_path):
    """Helm parsed and printed them: they are still what Prometheus reads."""
    (rule,) = of(rendered(chart, {"monitoring": {"rules": True}}), "PrometheusRule")
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump(rule["spec"]))
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_package_holds_the_linked_files(tmp_path):
    """`helm package` resolves the links, so that a packaged chart stands alone, and leaves ci/ out."""
    archive = helm_python.package(CHART, destination=str(tmp_path))
    listing = subprocess.run(["tar", "-tzf", archive], capture_output=True, text=True, check=True).stdout
    assert "equipoise/files/haproxy.cfg" in listing and "/ci/" not in listing
    with helm_python.Chart.load(archive) as packaged:
        assert of(rendered(packaged, {}), "ConfigMap", "haproxy")


@pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="haproxy is not installed: `bash deploy/system-packages.sh`"
)
@pytest.mark.slow
def test_haproxy_follows_the_names_of_replicas(tmp_path):
    """A real HAProxy over the chart's configuration: new addresses of a name are used, old ones are not."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    script = Path(__file__).parents[1] / "support" / "named_replicas.py"
    apart = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child"]
    done = subprocess.run(
        [*apart, sys.executable, script, tmp_path], capture_output=True, text=True, timeout=280, env=os.environ
    )
    assert done.returncode == 0, done.stdout + done.stderr
