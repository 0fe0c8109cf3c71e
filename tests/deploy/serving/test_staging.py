"""Triton reads a mirror of the repository; the repository itself is never written."""

from __future__ import annotations

from pathlib import Path

import pytest
from equipoise_deploy.errors import RepositoryError
from equipoise_deploy.serving.staging import sampler_instances, stage_repository
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig


def _config(path: Path) -> ModelConfig:
    return text_format.Parse(path.read_text(), ModelConfig())


@pytest.mark.parametrize(
    ("cores", "aggregators", "samplers", "threads", "batch"),
    [(1, 4, 1, 1, 8), (2, 4, 2, 1, 2), (3, 4, 3, 1, 2), (4, 4, 4, 1, 1), (64, 16, 4, 16, 1)],
)
def test_instances_follow_the_cores(repository, tmp_path, cores, aggregators, samplers, threads, batch):
    """Four to sixteen aggregators; up to four samplers that share the cores, and the windows of a large image, out."""
    assert stage_repository(repository, tmp_path, "embedded", cores) == ("tinyseg",)
    public = _config(tmp_path / "tinyseg/config.pbtxt")
    assert public.instance_group[0].count == aggregators
    assert public.parameters["instances"].string_value == str(samplers)
    sampler = _config(tmp_path / "tinyseg_sampler/configs/embedded.pbtxt")
    assert sampler.instance_group[0].count == samplers
    assert sampler.parameters["intra_op_thread_count"].string_value == str(threads)
    assert sampler.max_batch_size == batch


@pytest.mark.parametrize(("members", "samplers"), [(1, 4), (2, 2), (3, 1), (5, 1)])
def test_members_of_an_ensemble_share_the_cores(members, samplers):
    """They run at the same time: each has fewer instances, but one at least."""
    assert sampler_instances(8, members) == samplers


def test_a_sampler_on_the_gpu_keeps_its_instances(repository, tmp_path):
    """Cores say nothing of a GPU."""
    stage_repository(repository, tmp_path, "", 8)
    sampler = _config(tmp_path / "tinyseg_sampler/config.pbtxt")
    assert (
        sampler.instance_group[0].count == _config(repository / "tinyseg_sampler/config.pbtxt").instance_group[0].count
    )
    assert "intra_op_thread_count" not in sampler.parameters
    assert sampler.max_batch_size == 8


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


def test_folder_without_models_is_refused(tmp_path):
    """An empty repository is a mistake of the path, most of the time."""
    with pytest.raises(RepositoryError, match="has no model"):
        stage_repository(tmp_path, tmp_path / "staged", "embedded", 2)
    with pytest.raises(RepositoryError, match="is not a folder"):
        stage_repository(tmp_path / "absent", tmp_path / "staged", "embedded", 2)
