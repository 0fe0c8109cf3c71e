"""Triton is found in the wheel or where the environment says, and what is missing is said."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from equipoise_deploy.errors import EngineError
from equipoise_deploy.ports import USUAL_PORTS
from equipoise_deploy.serving import engine
from equipoise_deploy.serving.device import EMBEDDED
from equipoise_deploy.serving.engine import STUB, find_engine
from equipoise_deploy.serving.server import triton_command


def test_wheel_is_the_default():
    """Without any variable: the wheel's binary, Python backend and stub, and the embedded configuration."""
    found = find_engine({})
    assert found.binary.name == "tritonserver"
    assert found.configuration == EMBEDDED
    assert found.stub is not None
    assert found.stub.parent.name == f"{sys.version_info.major}.{sys.version_info.minor}"


def test_a_library_that_is_not_there_is_named(monkeypatch, tmp_path):
    """Debian's own Python brings no libpython, and Triton would wait for its stubs until the time is over."""
    stub = tmp_path / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}" / STUB
    stub.parent.mkdir(parents=True)
    real = find_engine({}).stub
    stub.write_bytes(real.read_bytes().replace(b"libpython", b"libabsent"))
    stub.chmod(0o755)
    for each in ("bin/tritonserver", "backends/python/libtriton_python.so"):
        (tmp_path / each).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / each).touch()
    monkeypatch.setattr(engine, "_wheel", lambda: tmp_path)
    with pytest.raises(EngineError, match=r"needs .*libabsent3\.\d+\.so\.1\.0, which .*apt-get install libpython3"):
        find_engine({})


def test_links_hold_the_stub_and_leave_the_wheel_alone(tmp_path):
    """The stub must lie beside the backend's library: in a folder of links, not in site-packages."""
    found = find_engine({})
    folder = found.link_backends(tmp_path) / "python"
    assert (folder / STUB).is_file() and (folder / "libtriton_python.so").is_file()
    assert not (found.backends[0] / "python" / STUB).exists()


def test_environment_adds_backends_and_chooses_the_configuration(tmp_path):
    """A folder with only a native ONNX Runtime backend is completed by the wheel's Python backend."""
    native = tmp_path / "native" / "onnxruntime"
    native.mkdir(parents=True)
    (native / "libtriton_onnxruntime.so").touch()
    found = find_engine({"EQUIPOISE_TRITON_BACKENDS": str(native.parent), "EQUIPOISE_TRITON_CONFIG": "cpu"})
    linked = found.link_backends(tmp_path / "linked")
    assert found.configuration == "cpu"
    assert (linked / "onnxruntime" / "libtriton_onnxruntime.so").exists()
    assert (linked / "python" / STUB).exists()


def test_an_installation_with_its_own_stub_is_linked_by_folders(tmp_path):
    """As NVIDIA's image has it: Triton refuses a Python-based backend whose library is a link out of its folder."""
    for file in ("bin/tritonserver", f"backends/python/{STUB}", "backends/onnxruntime/model.py"):
        path = tmp_path / "opt" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = find_engine({"EQUIPOISE_TRITON_BINARY": str(tmp_path / "opt/bin/tritonserver")})
    linked = found.link_backends(tmp_path / "linked")
    for name, file in (("python", STUB), ("onnxruntime", "model.py")):
        folder = linked / name
        assert (folder / file).resolve().is_relative_to(folder.resolve())


def test_empty_configuration_means_the_default_one():
    """An empty variable is a choice: config.pbtxt, the GPU's."""
    assert find_engine({"EQUIPOISE_TRITON_CONFIG": ""}).configuration == ""


@pytest.mark.parametrize("variable", ["EQUIPOISE_TRITON_BINARY", "EQUIPOISE_TRITON_BACKENDS"])
def test_path_that_does_not_exist_is_named(variable, tmp_path):
    """The message repeats the variable and its value."""
    with pytest.raises(EngineError, match=f"{variable} names {tmp_path}/absent"):
        find_engine({variable: str(tmp_path / "absent")})


def test_options_of_the_environment_come_last():
    """As a shell would split them; Triton takes the last of two that contradict each other."""
    found = find_engine({"EQUIPOISE_TRITON_OPTIONS": "--allow-client-shm=false '--log-format=a b'"})
    command = triton_command(found, Path("models"), Path("backends"), USUAL_PORTS, "prefix", 30)
    assert command[-2:] == ["--allow-client-shm=false", "--log-format=a b"]
    plain = triton_command(find_engine({}), Path("models"), Path("backends"), USUAL_PORTS, "prefix", 30)
    secret = re.compile("equipoise=[0-9a-f]+$")  # of each start
    assert [secret.sub("", word) for word in plain] == [secret.sub("", word) for word in command[:-2]]
