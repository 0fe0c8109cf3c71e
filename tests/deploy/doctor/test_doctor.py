"""The doctor finds what is wrong, says what to do, and keeps quiet about what is well."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from equipoise_client.cli.main import main
from equipoise_clinic.audit import Kind, append
from equipoise_deploy.bundle.making import SBOM
from equipoise_deploy.doctor import machine, models, network, running, software
from equipoise_deploy.doctor.checks import MACHINE_CHECKS, SERVER_CHECKS
from equipoise_deploy.doctor.results import Status, Subject, examine
from equipoise_deploy.ports import Ports, listeners
from equipoise_deploy.promotion.promotion import PromotionRequest, promote
from equipoise_deploy.releases.publishing import make_release
from equipoise_deploy.releases.store import Store
from equipoise_deploy.repository import parse_configuration
from equipoise_deploy.serving import staging
from equipoise_deploy.serving.container import IMAGE
from equipoise_deploy.serving.engine import CONFIGURATION_VARIABLE
from equipoise_deploy.serving.server import TritonServer
from equipoise_export.publish.repository import publish_pair
from google.protobuf import text_format

from ...support.ports import free_port
from ...support.releases import give_policy, make_keys, overwrite, proven

NOW = datetime.now(timezone.utc)
DEPLOY = Path(__file__).parents[3] / "deploy"


@pytest.fixture
def pairs(tmp_path, tiny_classifier) -> Path:
    folder = tmp_path / "pairs"
    publish_pair(proven(tiny_classifier), folder)
    return folder


@pytest.fixture
def subject(pairs) -> Subject:
    return Subject(pairs)


def _worst(findings) -> Status:
    order = [Status.SKIPPED, Status.OK, Status.WARNING, Status.FAILURE]
    return max((finding.status for finding in findings), key=order.index)


def _certificate(folder: Path, begins: timedelta, ends: timedelta) -> tuple[Path, Path]:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "triton")])
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW + begins)
        .not_valid_after(NOW + ends)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "proxy.pem", folder / "proxy.key"
    certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    private.chmod(0o600)
    return certificate, private


@pytest.mark.parametrize(
    ("begins", "ends", "status"),
    [(-9, 90, Status.OK), (-9, 20, Status.WARNING), (-9, -1, Status.FAILURE), (1, 90, Status.FAILURE)],
)
def test_a_certificate_that_ends_is_seen_before_it_does(tmp_path, subject, begins, ends, status):
    """Thirty days are enough to have a new one issued."""
    certificate, key = _certificate(tmp_path, timedelta(days=begins), timedelta(days=ends))
    findings = list(network.certificate(replace(subject, certificate=certificate, key=key)))
    assert findings[0].status is status and findings[1].status is Status.OK


def test_a_key_that_others_read_or_that_belongs_elsewhere_is_a_failure(tmp_path, subject):
    """And a file that is no key at all."""
    certificate, key = _certificate(tmp_path, timedelta(0), timedelta(days=90))
    mine = replace(subject, certificate=certificate, key=key)
    key.chmod(0o644)
    assert "read by others" in list(network.certificate(mine))[1].found
    other = make_keys(tmp_path).private
    other.chmod(0o600)
    assert "does not belong" in list(network.certificate(replace(mine, key=other)))[1].found
    assert "not a private key" in list(network.certificate(replace(mine, key=certificate)))[1].found
    assert "not a certificate" in next(network.certificate(replace(mine, certificate=key))).found


def test_a_taken_port_is_named_with_who_has_it(subject):
    """Before going live."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        number = held.getsockname()[1]
        findings = list(network.ports(replace(subject, ports=Ports(number, 0, 0))))
        assert findings[0].status is Status.FAILURE and f"process {os.getpid()}" in findings[0].found
        assert [finding.status for finding in findings[1:]] == [Status.OK, Status.OK]


@pytest.mark.parametrize(
    ("family", "address", "status"),
    [
        (socket.AF_INET, "127.0.0.1", Status.OK),
        (socket.AF_INET, "0.0.0.0", Status.FAILURE),
        (socket.AF_INET6, "::", Status.FAILURE),
        (socket.AF_INET6, "::1", Status.OK),
    ],
)
def test_a_server_that_the_network_reaches_is_a_failure(subject, family, address, status):
    """Triton binds every address unless an option forbids it."""
    with socket.socket(family) as held:
        try:
            held.bind((address, free_port()))
        except OSError:
            pytest.skip("no IPv6 here")
        held.listen()
        number = held.getsockname()[1]
        assert [listener.address for listener in listeners(number) if listener.pid == os.getpid()] == [address]
        (finding,) = network.ports(replace(subject, grpc=f"localhost:{number}"))
        assert finding.status is status


def test_whoever_could_change_a_model_is_named(subject, pairs):
    """Anybody, a group, or the service's own user."""
    for path in (pairs, *pairs.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert _worst(models.permissions(subject)) is Status.OK
    policy = pairs / "tinycls/1/contract.json"
    policy.chmod(0o666)
    (finding,) = models.permissions(subject)
    assert finding.status is Status.FAILURE and str(policy) in finding.found
    policy.chmod(0o644)
    pairs.parent.chmod(0o777)  # STORE/current could be pointed at something else
    (finding,) = models.permissions(subject)
    assert finding.status is Status.FAILURE and str(pairs.parent) in finding.found
    pairs.parent.chmod(0o755)
    if os.getuid() == 0:
        shutil.chown(policy, user="nobody")
        (finding,) = models.permissions(replace(subject, user="nobody"))
        assert finding.status is Status.FAILURE and "own user nobody" in finding.found
    assert "no user" in next(models.permissions(replace(subject, user="nobody-at-all"))).found


def test_policies_are_missing_foreign_or_its_own(subject, pairs):
    """Missing is a warning: the service is safe. Foreign is somebody's mistake."""
    assert _worst(models.policies(subject)) is Status.WARNING
    policy = give_policy(pairs / "tinycls")
    assert _worst(models.policies(subject)) is Status.OK
    (pairs / "tinycls/1/policy.json").write_text(replace(policy, model_digest="0" * 64).dumps())
    assert _worst(models.policies(subject)) is Status.FAILURE
    overwrite(pairs / "tinycls_sampler/1/model.onnx", b"nothing")
    assert "does not load" in next(models.policies(subject)).found


@pytest.mark.parametrize("where", ["cuda", "tensorrt", "optimization"])
def test_cuda_graphs_are_refused(subject, pairs, where):
    """In any configuration of any model: they answer with another image's data."""
    assert _worst(models.cuda_graphs(subject)) is Status.OK
    path = pairs / "tinycls_sampler/configs/tensorrt.pbtxt"
    config = parse_configuration(path)
    if where == "optimization":
        config.optimization.cuda.graphs = True
    for each in config.optimization.execution_accelerators.gpu_execution_accelerator:
        if each.name == where:
            each.parameters["enable_cuda_graph" if where == "cuda" else "trt_cuda_graph_enable"] = "1"
    path.write_text(text_format.MessageToString(config))
    (found,) = models.cuda_graphs(subject)
    assert found.status is Status.FAILURE and "tensorrt.pbtxt sets" in found.found
    for each in config.optimization.execution_accelerators.gpu_execution_accelerator:
        for name in set(each.parameters) & set(models.CUDA_GRAPHS):
            each.parameters[name] = "false"
    config.optimization.cuda.graphs = False
    path.write_text(text_format.MessageToString(config))
    assert _worst(models.cuda_graphs(subject)) is Status.OK


def test_a_store_is_held_to_its_signatures_and_to_its_log(tmp_path, pairs):
    """Changed files, a missing signature, a version that the log does not know."""
    give_policy(pairs / "tinycls")
    keys, store = make_keys(tmp_path), Store(tmp_path / "store")
    make_release(pairs, "tinycls", store, keys.private)
    promote(store, "tinycls")
    mine = Subject(store.current, trust=keys.public)
    assert [finding.status for finding in models.release(mine)] == [Status.OK, Status.OK]
    other = make_keys(tmp_path, "other")
    assert "release.sig does not hold" in next(models.release(replace(mine, trust=other.public))).found
    give_policy(pairs / "tinycls", 0.1)
    make_release(pairs, "tinycls", store, keys.private)
    with store.locked():
        store.switch({"tinycls": store.served_release("tinycls", 2, ())})
    findings = list(models.release(mine))
    assert findings[0].status is Status.OK and findings[1].status is Status.FAILURE
    assert "not the version that the log has as promoted" in findings[1].found
    promote(store, "tinycls@1", PromotionRequest(accept_changes="a test"))
    assert _worst(models.release(mine)) is Status.OK
    overwrite(store.folder("tinycls", 1) / "tinycls/1/model.py", b"import os")
    assert "was changed" in next(models.release(mine)).found


def test_the_audit_log_is_whole_and_writable(tmp_path, subject):
    """A log that cannot be written holds up every decision."""
    log = tmp_path / "audit.jsonl"
    append(log, Kind.DECISION, {"route": "review"})
    before = log.read_bytes()
    mine = replace(subject, audit_log=log)
    assert _worst(models.audit_log(mine)) is Status.OK and log.read_bytes() == before
    log.write_bytes(before.replace(b"review", b"accept"))
    assert "line 1" in next(models.audit_log(mine)).found
    assert "no folder" in next(models.audit_log(replace(subject, audit_log=tmp_path / "a/b"))).found


def test_the_machine_is_looked_at(subject):
    """Memory, shared memory and clock have figures, whatever they are here."""
    for check in (machine.cores, machine.memory, machine.shared_memory, machine.clock):
        (finding,) = check(subject)
        assert finding.found and (finding.remedy or finding.status in (Status.OK, Status.SKIPPED))


def test_shared_memory_is_counted_for_the_processes_that_there_are(subject, monkeypatch):
    """Samplers of the native backend run inside Triton."""
    counted = {}
    for configuration in ("embedded", "cpu"):
        monkeypatch.setenv(CONFIGURATION_VARIABLE, configuration)
        (finding,) = machine.shared_memory(subject)
        counted[configuration] = int(re.search(r"(\d+) Python processes", finding.found)[1])
    assert counted["embedded"] == counted["cpu"] + 1


@pytest.mark.parametrize(
    ("limit", "older", "status", "words"),
    [
        ("max 100000", "", Status.OK, " cores"),
        ("100000 100000", "", Status.OK, "1 of .* cores, by the control group's quota"),
        ("50000 100000", "", Status.WARNING, "less than one core"),
        ("max 100000", "-1", Status.OK, " cores"),
        ("max 100000", "200000", Status.WARNING, "is not followed"),
    ],
)
def test_cores_follow_the_control_groups_quota(tmp_path, monkeypatch, subject, limit, older, status, words):
    """Not the node's 64."""
    group = tmp_path / "pod"
    group.mkdir()
    (group / "cpu.max").write_text(limit)
    if older:
        (tmp_path / "cpu").mkdir()
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(older)
    monkeypatch.setattr(staging, "CGROUPS", tmp_path)
    monkeypatch.setattr(staging, "own_group", lambda: Path("pod"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    (finding,) = machine.cores(subject)
    assert finding.status is status and re.search(words, finding.found)
    assert staging.available_cores() == (3 if limit.startswith("max") else 1)


@pytest.mark.parametrize(("free", "status"), [(0.5, Status.FAILURE), (1.5, Status.WARNING), (2.5, Status.OK)])
def test_shared_memory_has_room_for_every_process(monkeypatch, subject, free, status):
    """At least what they begin with; better twice as much."""
    processes = machine.stub_processes(subject.repository, "embedded", machine.available_cores())
    has = int(free * processes * machine.SHARED_MEMORY_BYTES)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(has, 0, has))
    (finding,) = machine.shared_memory(subject)
    assert finding.status is status and (status is Status.OK) is (not finding.remedy)


@pytest.mark.parametrize(
    ("release", "status"),
    [("26.07", Status.OK), ("26.12", Status.OK), ("27.01", Status.OK), ("26.06", Status.FAILURE),
     ("25.12", Status.FAILURE), ("24.10", Status.FAILURE)],
)  # fmt: skip
def test_a_triton_that_is_older_than_the_safe_one_is_a_failure(subject, release, status):
    """A newer year counts more than a later month."""
    (finding,) = software.triton_version(replace(subject, triton_release=release))
    assert finding.status is status
    assert (f"NGC image {software.SAFE_TRITON} or newer" in finding.remedy) is (status is Status.FAILURE)


def test_the_embedded_triton_is_for_development_only(subject):
    """It is older than any safe release: a warning, since doctor cannot know what this machine is for."""
    (finding,) = software.triton_version(subject)
    assert finding.status is Status.WARNING and "development on loopback only" in finding.remedy


def test_what_this_repository_deploys_is_not_older_than_the_safe_triton(subject):
    """The image of `equipoise serve --engine container`, of the Dockerfile and of compose."""
    release = IMAGE.rpartition(":")[2].removesuffix("-py3")
    (finding,) = software.triton_version(replace(subject, triton_release=release))
    assert finding.status is Status.OK
    for name in ("Dockerfile", "compose.yaml"):
        (version,) = re.findall(r"TRITON_VERSION(?:=|: \$\{TRITON_VERSION:-)([\d.]+)", (DEPLOY / name).read_text())
        (finding,) = software.triton_version(replace(subject, triton_release=version))
        assert finding.status is Status.OK, name


def test_tritons_own_version_leads_to_the_containers():
    """As far as the two keep step."""
    assert [software.CONTAINER_OF[v] for v in ("2.42", "2.46", "2.51", "2.53", "2.59")] == [
        "24.01", "24.05", "24.10", "24.12", "25.06",
    ]  # fmt: skip


def test_packages_are_scanned_by_a_scanner(subject):
    """A table in a release would grow old; what doctor has not looked at it does not call well."""
    (finding,) = software.packages(subject)
    assert finding.status is Status.SKIPPED and f"grype sbom:{SBOM}" in finding.remedy


def test_a_check_that_breaks_stops_no_other(subject):
    """It is a failure of its own."""

    def broken(subject):
        raise ZeroDivisionError

    findings = list(examine(subject, (("broken", broken), ("memory", machine.memory))))
    assert [finding.check for finding in findings] == ["broken", "memory"]
    assert findings[0].status is Status.FAILURE


def test_exit_codes_and_json(pairs, capsys):
    """0 without a failure, 1 with one or with --strict, 2 for wrong usage."""

    def call(*words: str) -> int:
        with pytest.raises(SystemExit) as done:
            main(["doctor", "--repository", str(pairs), "--grpc-port=0", "--http-port=0", "--metrics-port=0", *words])
        return done.value.code

    code = call("--json")
    document = json.loads(capsys.readouterr().out)
    assert code == (1 if document["counts"]["failure"] else 0)
    assert {finding["check"] for finding in document["findings"]} == {name for name, _ in MACHINE_CHECKS}
    assert call("--strict") == 1, "there is no policy, which is a warning"
    assert call("--baseline", str(pairs / "tinycls/1/contract.json")) == 2
    assert call("--url", "nowhere") == 2
    assert call("--repository", str(pairs / "absent")) == 1


@pytest.mark.slow
@pytest.mark.triton
def test_a_running_server_is_examined(tmp_path, pairs, capsys):
    """A real Triton: it answers, has no telemetry, listens on loopback; slower or other numbers than recorded show."""
    give_policy(pairs / "tinycls")
    baseline = tmp_path / "baseline.json"
    with TritonServer(pairs, ports=Ports(0, 0, 0)) as server:
        metrics = server.metrics_url.removeprefix("http://").removesuffix("/metrics")
        mine = Subject(pairs, grpc=server.grpc_url, http=server.http_url, metrics=metrics, record=baseline)
        findings = list(examine(mine, (*MACHINE_CHECKS, *SERVER_CHECKS)))
        results = {finding.check: finding for finding in findings}
        assert results["inference"].status is Status.OK and results["baseline"].status is Status.OK
        assert [f.status for f in findings if f.check == "ports"] == [Status.OK] * 3
        phones = [f for f in findings if f.check == "telemetry" and "device id" not in f.found]
        assert [f.status for f in phones] == [Status.OK] and "running processes" in phones[0].found
        assert results["counters"].status is Status.OK and "route" in results["counters"].found
        assert "Triton 2.51" in results["Triton"].found

        before = json.loads(baseline.read_text())
        mine = replace(mine, record=None, baseline=baseline)
        before["models"]["tinycls"]["median_ms"] = 1e-3
        baseline.write_text(json.dumps(before))
        assert {f.check: f for f in running.inference(mine)}["latency"].status is Status.FAILURE
        before["models"]["tinycls"].update(median_ms=1e9, variance=0.2)
        baseline.write_text(json.dumps(before))
        again = {f.check: f for f in running.inference(mine)}
        assert again["latency"].status is Status.OK and again["inference"].status is Status.FAILURE
        baseline.write_text("{}")
        assert "not a baseline" in next(running.inference(mine)).found
    stopped = next(running.inference(replace(mine, baseline=None)))
    assert stopped.status is Status.FAILURE and stopped.remedy
