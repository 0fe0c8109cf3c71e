"""Nothing phones home: no command opens a connection beyond this machine, and ONNX Runtime keeps no device id."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
OURS = ("export", "client", "deploy", "model_repository", "tests")

SERVE_AND_PREDICT = """
import subprocess, sys
from pathlib import Path
from equipoise_deploy.ports import Ports
from equipoise_deploy.readiness import check_readiness
from equipoise_deploy.server import TritonServer
with TritonServer(Path(sys.argv[1]), ports=Ports(0, 0, 0)) as server:
    check_readiness(server.grpc_url, server.models)
    command = [str(Path(sys.executable).with_name("equipoise")), "predict", "pneumonia", sys.argv[2], "--json"]
    sys.exit(subprocess.run([*command, "--url", server.grpc_url]).returncode)
"""

EXPORT = """
import torch
from equipoise_export.reference.build import compile_reference
from equipoise_export.reference.specs import REFERENCES
compile_reference(REFERENCES["pneumonia"])
"""


@pytest.fixture
def traced(tmp_path):
    """Runs a script under strace in an empty home; gives back the traced calls and the home."""
    strace = shutil.which("strace")
    assert strace, "strace is not installed: run deploy/system-packages.sh as root"
    home = tmp_path / "home"
    home.mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_"))}

    def run(script: str, *arguments: str) -> list[str]:
        log = tmp_path / "calls"
        command = [strace, "-f", "-qq", "-e", "trace=connect,bind,sendto,sendmsg", "-o", str(log), sys.executable]
        environment = {**inherited, "HOME": str(home)}
        done = subprocess.run(
            [*command, "-c", script, *arguments], env=environment, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return log.read_text(errors="replace").splitlines()

    return run, home


def strangers(calls: list[str]) -> list[str]:
    """The calls that name an address beyond this machine."""
    addressed = [call for call in calls if re.search(r"sin6?_addr|inet_addr|inet_pton|sin6?_port", call)]
    return [call for call in addressed if not re.search(r'"(127\.\d+\.\d+\.\d+|::1|::ffff:127\.\d+\.\d+\.\d+)"', call)]


def kept_by_onnxruntime(home: Path) -> list[Path]:
    """Files by which ONNX Runtime would recognise this machine."""
    return [path for path in home.rglob("*") if re.search(r"onnx|device.?id|microsoft", str(path), re.I)]


def test_a_stranger_would_be_seen():
    """The filter lets loopback pass and nothing else."""
    outside = 'connect(5, {sa_family=AF_INET, sin_port=htons(443), sin_addr=inet_addr("192.0.2.1")}, 16) = 0'
    everywhere = 'bind(5, {sa_family=AF_INET, sin_port=htons(8000), sin_addr=inet_addr("0.0.0.0")}, 16) = 0'
    inside = 'connect(5, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("127.0.0.1")}, 16) = 0'
    assert strangers([outside, everywhere, inside, 'connect(3, {sa_family=AF_UNIX, sun_path="/x"}, 9) = 0']) == [
        outside, everywhere,
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.pipeline
def test_serving_and_asking_stays_on_this_machine(traced, tmp_path):
    """Start the three models, answer a file, stop: every address is loopback, and the home stays clean."""
    run, home = traced
    image = tmp_path / "image.npy"
    np.save(image, np.random.default_rng(0).uniform(0, 255, (1, 28, 28)).astype(np.float32))
    calls = run(SERVE_AND_PREDICT, str(REPOSITORY / "model_repository"), str(image))
    assert any("bind" in call for call in calls), "strace saw no server: this test would prove nothing"
    assert strangers(calls) == []
    assert kept_by_onnxruntime(home) == []


@pytest.mark.slow
def test_exporting_stays_on_this_machine(traced):
    """Capture, compile and prove without a single address."""
    run, home = traced
    assert strangers(run(EXPORT)) == []
    assert kept_by_onnxruntime(home) == []


def test_onnxruntime_is_never_loaded_with_telemetry():
    """Every file that imports it sets ORT_DISABLE_TELEMETRY=1 in an earlier line, or is run where it is set."""
    importers = [file for folder in OURS for file in (REPOSITORY / folder).rglob("*.py") if _imports(file)]
    assert importers
    for file in importers:
        text = file.read_text(encoding="utf-8")
        position = text.find('os.environ["ORT_DISABLE_TELEMETRY"] = "1"')
        assert 0 <= position < _imports(file), f"{file.relative_to(REPOSITORY)} imports onnxruntime without that"


def _imports(file: Path) -> int:
    """Character at which the file first imports onnxruntime itself; 0: it does not."""
    text = file.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        if any(name.split(".")[0] == "onnxruntime" for name in names):
            return sum(len(line) for line in text.splitlines(keepends=True)[: node.lineno - 1])
    return 0
