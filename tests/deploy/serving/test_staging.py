"""Triton reads a mirror of the repository; the repository itself is never written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from equipoise_core.gpu_memory import CUDA_RESERVE
from equipoise_deploy.errors import DeployError, RepositoryError
from equipoise_deploy.gpu_memory import gpu_limits
from equipoise_deploy.repository import configuration_of, parse_configuration
from equipoise_deploy.serving.settings import Settings
from equipoise_deploy.serving.staging import (
    available_cores,
    published_settings,
    quota,
    sampler_instances,
    stage_repository,
    stub_processes,
)
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig


def _config(path: Path) -> ModelConfig:
    return text_format.Parse(path.read_text(), ModelConfig())


@pytest.mark.parametrize(
    ("cores", "aggregators", "runs", "threads"),
    [(1, 4, 1, 1), (2, 4, 2, 1), (3, 4, 3, 1), (4, 4, 4, 1), (64, 16, 4, 16)],
)
def test_instances_follow_the_cores(repository, tmp_path, cores, aggregators, runs, threads):
    """Four to sixteen aggregators; a stand-in that runs up to four requests at a time, or a lone one on all cores."""
    assert stage_repository(repository, tmp_path, "embedded", cores) == ("tinyseg",)
    public = _config(tmp_path / "tinyseg/config.pbtxt")
    assert public.instance_group[0].count == aggregators
    assert public.parameters["instances"].string_value == "1"
    sampler = _config(tmp_path / "tinyseg_sampler/configs/embedded.pbtxt")
    assert sampler.instance_group[0].count == 1
    said = {name: int(sampler.parameters[name].string_value) for name in ("runs", "intra_op_thread_count", "alone")}
    assert said == {"runs": runs, "intra_op_thread_count": threads, "alone": cores}


def test_the_native_backend_on_the_cpu_has_its_threads_by_instance(repository, tmp_path):
    """Nothing there gives a lone request more of them: what is sampled together is shared out over all instances."""
    stage_repository(repository, tmp_path, "cpu", 8)
    sampler = _config(tmp_path / "tinyseg_sampler/configs/cpu.pbtxt")
    assert (sampler.instance_group[0].count, sampler.parameters["intra_op_thread_count"].string_value) == (8, "1")
    assert _config(tmp_path / "tinyseg/config.pbtxt").parameters["instances"].string_value == "8"
    many = published_settings(repository, "tinyseg", "cpu", 64)
    assert (many.samplers, many.threads) == (16, 4)


@pytest.mark.parametrize("configuration", ["embedded", "cpu"])
def test_on_the_cpu_requests_share_a_run_only_where_a_delay_is_asked_for(repository, tmp_path, configuration):
    """Else a run would take what several public models' requests were made for, each on its own."""
    for delay in (None, 0, 300):
        into = tmp_path / str(delay)
        into.mkdir()
        stage_repository(repository, into, configuration, 2, {"tinyseg": Settings(delay=delay)})
        sampler = _config(into / f"tinyseg_sampler/configs/{configuration}.pbtxt")
        assert sampler.HasField("dynamic_batching") == bool(delay)


@pytest.mark.parametrize(
    ("files", "group", "cores"),
    [
        ({}, "", 1_000_000),
        ({"cpu.max": "max 100000"}, "", 1_000_000),
        ({"cpu.max": "250000 100000"}, "", 2),
        ({"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000"}, "a/b", 4),
        ({"cpu.max": "nonsense"}, "", 1_000_000),
    ],
)
def test_a_quota_limits_the_cores(tmp_path, files, group, cores):
    """Of the process's control group or of one above it."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert quota(tmp_path, Path(group)) == cores
    assert 1 <= available_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(("members", "samplers", "native"), [(1, 4, 8), (2, 2, 4), (3, 1, 2), (5, 1, 1), (9, 1, 1)])
def test_members_of_an_ensemble_share_the_cores(members, samplers, native):
    """They run at the same time: each runs fewer requests, but one at least."""
    assert sampler_instances(8, members, native=False) == samplers
    assert sampler_instances(8, members, native=True) == native


@pytest.mark.parametrize(("configuration", "processes"), [("embedded", 9), ("cpu", 8), ("", 16)])
def test_samplers_of_the_native_backend_have_no_process(repository, configuration, processes):
    """Of eight cores; on a GPU there are as many aggregators as meet at the sampler, whatever the cores."""
    assert stub_processes(repository, configuration, 8) == processes


def test_a_sampler_on_the_gpu_keeps_its_instances(repository, tmp_path):
    """Cores say nothing of a GPU."""
    stage_repository(repository, tmp_path, "", 8)
    sampler = _config(tmp_path / "tinyseg_sampler/config.pbtxt")
    assert (
        sampler.instance_group[0].count == _config(repository / "tinyseg_sampler/config.pbtxt").instance_group[0].count
    )
    assert "intra_op_thread_count" not in sampler.parameters
    assert _config(tmp_path / "tinyseg/config.pbtxt").parameters["instances"].string_value == "1"
    assert sampler.HasField("dynamic_batching")
    assert sampler.max_batch_size == 8
    assert _config(tmp_path / "tinyseg/config.pbtxt").instance_group[0].count == 16, "few requests would share a run"


def test_a_gpus_memory_limits_what_shares_a_run(repository, tmp_path):
    """Aggregator and sampler agree on how many images; on the CPU there is nothing to limit."""
    needed = gpu_limits(repository, "tinyseg", 10**12).plan.needed(2)
    memory = needed // 10**6 + 1
    for configuration, images in (("", 2), ("tensorrt", 2), ("embedded", 8)):
        into = tmp_path / (configuration or "gpu")
        into.mkdir()
        stage_repository(repository, into, configuration, 2, {"tinyseg": Settings(gpu_memory=memory)})
        sampler = _config(configuration_of(into / "tinyseg_sampler", configuration))
        assert sampler.max_batch_size == images
        assert _config(into / "tinyseg/config.pbtxt").parameters["images"].string_value == str(images)
        if images == 2:
            given = int(sampler.parameters["gpu_mem_limit"].string_value)
            assert needed - CUDA_RESERVE <= given <= memory * 10**6 - CUDA_RESERVE
            assert sampler.model_warmup[0].batch_size == images
    with pytest.raises(DeployError, match=r"an image of 64 × 64 needs 1\.11 GB on a GPU, 0\.9 GB were given"):
        stage_repository(repository, tmp_path / "none", "", 2, {"tinyseg": Settings(gpu_memory=900)})


def test_mirror_has_directories_of_its_own_and_links_to_the_files(repository, tmp_path):
    """Python writes its __pycache__ beside the code it runs: beside the link, not beside the repository's file."""
    stage_repository(repository, tmp_path, "embedded", 2)
    code = tmp_path / "tinyseg/1/equipoise_core"
    assert code.is_dir() and not code.is_symlink()
    module = code / "contract.py"
    assert module.is_symlink() and module.samefile(repository / "tinyseg/1/equipoise_core/contract.py")


def test_hidden_folders_are_not_models(repository, tmp_path):
    """A publication in progress lies in a hidden folder."""
    source = tmp_path / "source"
    source.mkdir()
    for model in repository.iterdir():
        (source / model.name).symlink_to(model)
    (source / ".publishing-x").symlink_to(repository / "tinyseg")
    (tmp_path / "staged").mkdir()
    stage_repository(source, tmp_path / "staged", "embedded", 2)
    assert {path.name for path in (tmp_path / "staged").iterdir()} == {"tinyseg", "tinyseg_sampler"}


def test_a_named_pipe_is_no_configuration(tmp_path):
    """Reading it would wait for a writer, for ever."""
    os.mkfifo(tmp_path / "config.pbtxt")
    with pytest.raises(RepositoryError, match=r"config\.pbtxt is not a file"):
        parse_configuration(tmp_path / "config.pbtxt")


def test_folder_without_models_is_refused(tmp_path):
    """An empty repository is a mistake of the path, most of the time."""
    with pytest.raises(RepositoryError, match="has no model"):
        stage_repository(tmp_path, tmp_path / "staged", "embedded", 2)
    with pytest.raises(RepositoryError, match="is not a folder"):
        stage_repository(tmp_path / "absent", tmp_path / "staged", "embedded", 2)


def test_what_computes_decisions_is_handed_to_the_aggregator(repository, tmp_path):
    """For the record; on a GPU also the T of health probes, which is that of every request."""
    (tmp_path / "cpu").mkdir()
    stage_repository(repository, tmp_path / "cpu", "embedded", 2)
    parameters = _config(tmp_path / "cpu/tinyseg/config.pbtxt").parameters
    found = json.loads(parameters["computed_by"].string_value)
    assert found["provider"] == "CPUExecutionProvider" and found["onnxruntime"].startswith("onnxruntime 1.")
    assert found["triton"] and found["device"] and "probe_samples" not in parameters
    (tmp_path / "gpu").mkdir()
    stage_repository(repository, tmp_path / "gpu", "", 2)
    parameters = _config(tmp_path / "gpu/tinyseg/config.pbtxt").parameters
    found = json.loads(parameters["computed_by"].string_value)
    assert found["provider"] == "CUDAExecutionProvider" and found["provider_options"]["use_tf32"] == "0"
    assert parameters["probe_samples"].string_value == "20"


def test_on_a_gpu_probes_and_warm_up_have_the_t_of_requests(repository, tmp_path):
    """One shape, and enough samples to differ: stages of 3 and 20 samples are drawn one by one."""
    for chunk, probe in ((None, 20), (5, 5), (1, 2)):
        into = tmp_path / str(chunk)
        into.mkdir()
        stage_repository(repository, into, "", 2, {"tinyseg": Settings(chunk=chunk)})
        warmup = _config(into / "tinyseg_sampler/config.pbtxt").model_warmup[0]
        assert warmup.inputs["masks"].dims[0] == (chunk or 20)
        assert _config(into / "tinyseg/config.pbtxt").parameters["probe_samples"].string_value == str(probe)
