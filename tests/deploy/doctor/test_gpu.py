"""What the image needs of a GPU, by what nvidia-smi says: here a script says it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from equipoise_deploy.doctor import gpu
from equipoise_deploy.doctor.results import Status, Subject
from equipoise_deploy.repository import parse_configuration
from equipoise_export.publish.repository import publish_pair
from google.protobuf import text_format

OK, SKIPPED, WARNING, FAILURE = Status.OK, Status.SKIPPED, Status.WARNING, Status.FAILURE
L40S = "NVIDIA L40S, 610.12.06, 46068 MiB, 8.9, [N/A]"
H100 = "NVIDIA H100, 610.12.06, 81559 MiB, 9.0, Enabled"
INSTANCE = "GPU 0: NVIDIA H100 (UUID: GPU-1)\n  MIG 1g.10gb     Device  0: (UUID: MIG-2)"


@pytest.fixture
def says(tmp_path, monkeypatch):
    """Puts an nvidia-smi first on the PATH."""

    def program(query: str, listed: str = "GPU 0: one (UUID: GPU-1)", code: int = 0) -> None:
        script = tmp_path / "nvidia-smi"
        script.write_text(
            f"#!/bin/sh\nif [ \"$1\" = -L ]; then echo '{listed}'; else echo '{query}'; fi\nexit {code}\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return program


@pytest.fixture
def devices(tmp_path, monkeypatch) -> Path:
    """A folder for all device files and units, in which there is nothing yet."""
    folder = tmp_path / "root"
    folder.mkdir()
    monkeypatch.setattr(gpu, "_NVIDIA", (folder / "nvidiactl",))
    for name, file in (("_UVM", "nvidia-uvm"), ("_CAPS", "caps"), ("_COMPATIBILITY", "compat"), ("_UNITS", "units")):
        monkeypatch.setattr(gpu, name, folder / file)
    return folder


@pytest.fixture
def subject(tmp_path, tiny_classifier, monkeypatch) -> Subject:
    """A pair that is served on a GPU."""
    publish_pair(tiny_classifier, tmp_path / "pairs")
    monkeypatch.setenv("EQUIPOISE_TRITON_CONFIG", "")
    return Subject(tmp_path / "pairs")


@pytest.mark.parametrize(
    ("line", "statuses", "words"),
    [
        (L40S, [OK, OK], "NVIDIA L40S, driver 610.12.06, 45 GiB"),
        (L40S.replace("610.12", "580.65"), [WARNING, OK], "forward compatibility"),
        (L40S.replace("610.12", "570.86"), [FAILURE, OK], "older than image 26.07"),
        ("Tesla V100-SXM2, 610.12.06, 16384 MiB, 7.0, [N/A]", [OK, FAILURE], "7.0"),
        ("Tesla T4, 610.12.06, 16384 MiB, 7.5, [N/A]", [OK, OK], "7.5"),
        ("NVIDIA Thor, 610.12.06, 16384 MiB, 13.0, [N/A]", [OK, FAILURE], "13.0"),
        ("NVIDIA B200, Rev A, 610.12.06, 16384 MiB, [N/A], Disabled", [OK], "B200, Rev A"),
        ("No devices were found", [FAILURE], "No devices"),
    ],
)
def test_driver_and_compute_capability_are_the_images(says, devices, subject, line, statuses, words):
    """CUDA's branch, and the architectures that ONNX Runtime was built for."""
    says(line)
    findings = list(gpu.driver(subject))
    assert [each.status for each in findings] == statuses
    assert any(words in each.found for each in findings)


def test_the_forward_compatibility_package_lifts_a_driver(says, devices, subject, monkeypatch):
    """From 580 on. What the models are not served on may be as old as it likes."""
    (devices / "compat").mkdir()
    (devices / "compat" / "libcuda.so.610.12").touch()
    says(L40S.replace("610.12", "580.65"))
    assert "lifted" in next(gpu.driver(subject)).found
    says(L40S.replace("610.12", "570.65"))
    assert next(gpu.driver(subject)).status is FAILURE
    monkeypatch.setenv("EQUIPOISE_TRITON_CONFIG", "cpu")
    assert next(gpu.driver(subject)).status is WARNING


def test_a_driver_that_fails_is_quoted(says, devices, subject, monkeypatch):
    """Or its program is missing, though its device is there."""
    says("Failed to initialize NVML: Driver/library version mismatch", code=18)
    (finding,) = gpu.driver(subject)
    assert finding.status is FAILURE and "NVML" in finding.found
    assert [each.status for each in (*gpu.device_files(subject), *gpu.gpu_memory(subject))] == [SKIPPED, SKIPPED]
    monkeypatch.setenv("PATH", str(devices))
    (finding,) = gpu.driver(subject)
    assert finding.status is WARNING and "no GPU" in finding.found
    (devices / "nvidiactl").touch()
    (finding,) = gpu.driver(subject)
    assert finding.status is FAILURE and "no nvidia-smi" in finding.found


def test_unified_memory_has_its_device_beforehand(says, devices, subject):
    """A service without new privileges cannot have it made."""
    says(L40S)
    (finding,) = gpu.device_files(subject)
    assert finding.status is FAILURE and "nvidia-modprobe -u" in finding.remedy
    (devices / "nvidia-uvm").touch()
    (finding,) = gpu.device_files(subject)
    assert finding.status is OK


def test_mig_has_an_instance_and_the_way_to_it(says, devices, subject):
    """Visible, with its capability files, and let in by the unit where there is one."""
    (devices / "nvidia-uvm").touch()

    def found() -> tuple[Status, str]:
        (finding,) = [each for each in gpu.device_files(subject) if each.check == "MIG"]
        return finding.status, finding.found

    says(H100)
    assert found() == (FAILURE, "it is on, and no instance is visible: CUDA finds no device")
    says(H100, INSTANCE)
    assert found()[0] is FAILURE and "1g.10gb" in found()[1]
    (devices / "caps").mkdir()
    assert found() == (OK, "1g.10gb")
    drop_in = devices / "units" / "equipoise.service.d" / "gpu.conf"
    drop_in.parent.mkdir(parents=True)
    shipped = Path(__file__).parents[3] / "deploy/systemd/equipoise.service.d/gpu.conf.example"
    drop_in.write_text(shipped.read_text())
    assert found() == (OK, "1g.10gb")
    drop_in.write_text(shipped.read_text().replace("DeviceAllow=char-nvidia-caps rw\n", ""))
    assert found()[0] is FAILURE and "the unit" in found()[1]


@pytest.mark.parametrize(
    ("gpu_line", "listed", "limit", "instances", "status", "words"),
    [
        (L40S, "", 20, 1, OK, "20.0 GiB of 45.0 GiB"),
        (L40S, "", 20, 2, OK, "40.0 GiB"),
        (L40S, "", 45, 1, FAILURE, "45.0 GiB of 45.0 GiB"),
        (L40S, "", 20, 3, FAILURE, "60.0 GiB"),
        (L40S, "", None, 1, WARNING, "tinycls_sampler may take all"),
        (H100, INSTANCE, 8, 1, OK, "8.0 GiB of 10.0 GiB"),
        (H100, INSTANCE, 20, 1, FAILURE, "20.0 GiB of 10.0 GiB"),
    ],
)
def test_arenas_fit_into_the_gpu(says, devices, subject, gpu_line, listed, limit, instances, status, words):
    """All samplers' limits together, beside CUDA's own; of a MIG instance what it has."""
    says(gpu_line, listed or "GPU 0: one (UUID: GPU-1)")
    path = subject.repository / "tinycls_sampler" / "config.pbtxt"
    config = parse_configuration(path)
    config.parameters.pop(gpu.LIMIT, None)
    config.instance_group[0].count = instances
    if limit is not None:
        config.parameters[gpu.LIMIT].string_value = str(limit << 30)
    path.write_text(text_format.MessageToString(config))
    (finding,) = gpu.gpu_memory(subject)
    assert finding.status is status and words in finding.found


def test_memory_of_a_gpu_that_serves_nothing_does_not_matter(says, devices, subject, monkeypatch):
    """The embedded configuration, unless the environment says another."""
    says(L40S)
    monkeypatch.delenv("EQUIPOISE_TRITON_CONFIG")
    (finding,) = gpu.gpu_memory(subject)
    assert finding.status is SKIPPED and "'embedded'" in finding.found and "EQUIPOISE_TRITON_CONFIG" in finding.remedy
