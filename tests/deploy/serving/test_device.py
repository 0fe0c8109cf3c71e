"""The embedded server takes a GPU where one can be used, says why it does not, and never takes the CPU silently."""

from __future__ import annotations

import json
from importlib import metadata

import pytest
from equipoise_deploy.errors import EngineError, RepositoryError
from equipoise_deploy.serving import device
from equipoise_deploy.serving.command import serve_command
from equipoise_deploy.serving.computing import computed_by
from equipoise_deploy.serving.device import EMBEDDED, EMBEDDED_CUDA, embedded_configuration
from equipoise_deploy.serving.engine import find_engine
from equipoise_deploy.serving.staging import stage_repository
from equipoise_export.publish.repository import publish_pair
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
from typer import Typer
from typer.testing import CliRunner

APP = Typer()
APP.command()(serve_command)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with a GPU and `onnxruntime-gpu`, or without one of them."""

    def having(gpu: bool, provider: bool) -> None:
        node = tmp_path / "nvidiactl"
        monkeypatch.setattr(device, "NVIDIA_DEVICES", (node,))
        monkeypatch.setattr(device, "_provider_installed", lambda: provider)
        if gpu:
            node.touch()

    return having


def test_a_gpu_is_taken_where_all_of_it_is_there(machine):
    """Also when nobody asked for it."""
    machine(gpu=True, provider=True)
    for asked in ("auto", "cuda"):
        configuration, reason = embedded_configuration(asked, {})
        assert configuration == EMBEDDED_CUDA and "CUDA provider" in reason
    assert embedded_configuration("cpu", {})[0] == EMBEDDED
    assert find_engine({}).configuration == EMBEDDED_CUDA
    assert find_engine({"EQUIPOISE_DEVICE": "cpu"}).configuration == EMBEDDED


@pytest.mark.parametrize(
    ("gpu", "provider", "environment", "said"),
    [
        (False, True, {}, "no GPU is visible"),
        (True, False, {}, "onnxruntime has no CUDA provider; pip uninstall onnxruntime; pip install 'equipoise"),
        (True, True, {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES hides every GPU"),
        (True, True, {"CUDA_VISIBLE_DEVICES": "-1"}, "CUDA_VISIBLE_DEVICES hides every GPU"),
    ],
)
def test_what_lacks_is_said_and_refused_where_the_gpu_was_asked_for(machine, gpu, provider, environment, said):
    """Not asked for, the CPU is taken, and the operator learns why."""
    machine(gpu, provider)
    configuration, reason = embedded_configuration("auto", environment)
    assert configuration == EMBEDDED and said in reason
    with pytest.raises(EngineError, match=r"--device cuda: .*Or serve with --device cpu") as refusal:
        embedded_configuration("cuda", environment)
    assert said in str(refusal.value)


def test_the_provider_is_found_where_its_package_is():
    """Without loading it; the package `onnxruntime` has none."""
    packages = {each.metadata["Name"] for each in metadata.distributions()}
    assert device._provider_installed() == ("onnxruntime-gpu" in packages)


def test_another_word_and_a_contradiction_are_refused(machine):
    """A configuration that the environment names decides the device."""
    machine(gpu=True, provider=True)
    with pytest.raises(EngineError, match="'gpu'; expected one of auto, cpu, cuda"):
        find_engine({"EQUIPOISE_DEVICE": "gpu"})
    with pytest.raises(EngineError, match="leave out one of"):
        find_engine({"EQUIPOISE_DEVICE": "cuda", "EQUIPOISE_TRITON_CONFIG": "cpu"})
    assert find_engine({"EQUIPOISE_TRITON_CONFIG": "cpu"}).configuration == "cpu"


def test_serve_says_what_it_lacks(machine, repository, monkeypatch):
    """Before anything is started."""
    machine(gpu=False, provider=False)
    monkeypatch.delenv("EQUIPOISE_TRITON_CONFIG", raising=False)
    for words in (["--device", "cuda"], ["--engine", "embedded", "--device", "cuda"]):
        result = CliRunner().invoke(APP, [str(repository), *words])
        assert result.exit_code == 1
        assert "no GPU is visible" in result.output and "equipoise[gpu]" in result.output
    result = CliRunner().invoke(APP, [str(repository), "--engine", "container", "--device", "cpu"])
    assert result.exit_code == 1 and "--device cpu is for --engine embedded" in " ".join(result.output.split())


def test_staged_for_a_gpu_the_stand_in_is_one_run_on_it(repository, tmp_path):
    """Cores say nothing of a GPU; probes have the T of requests; the record has provider and options."""
    stage_repository(repository, tmp_path, EMBEDDED_CUDA, 8)
    sampler = _config(tmp_path / "tinyseg_sampler/configs/embedded_cuda.pbtxt")
    assert sampler.parameters["runs"].string_value == "1" and sampler.instance_group[0].count == 1
    assert not sampler.HasField("dynamic_batching")
    public = _config(tmp_path / "tinyseg/config.pbtxt").parameters
    assert public["instances"].string_value == "1" and public["probe_samples"].string_value == "20"
    found = json.loads(public["computed_by"].string_value)
    assert found["provider"] == "CUDAExecutionProvider" and found["provider_options"]["use_tf32"] == "0"
    assert found["onnxruntime"].startswith("onnxruntime")
    assert found == computed_by(sampler)


def test_a_pair_of_an_earlier_version_is_not_served_on_a_gpu(tiny_segmentation, tmp_path):
    """Its stand-in would ignore the device, compute on the CPU and be recorded as the GPU."""
    publish_pair(tiny_segmentation, tmp_path / "models")
    (tmp_path / "models/tinyseg_sampler/configs/embedded_cuda.pbtxt").unlink()
    (tmp_path / "staged").mkdir()
    with pytest.raises(RepositoryError, match="published by an earlier version; publish it again, or serve with"):
        stage_repository(tmp_path / "models", tmp_path / "staged", EMBEDDED_CUDA, 2)


def _config(path) -> ModelConfig:
    return text_format.Parse(path.read_text(), ModelConfig())
