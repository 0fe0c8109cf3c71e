"""Triton reads a mirror of the repository; the repository itself is never written."""

from __future__ import annotations

from pathlib import Path

import pytest
from equipoise_deploy.errors import RepositoryError
from equipoise_deploy.staging import stage_repository
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig


def _config(path: Path) -> ModelConfig:
    return text_format.Parse(path.read_text(), ModelConfig())


@pytest.mark.parametrize(("cores", "instances"), [(1, 4), (4, 4), (12, 12), (64, 16)])
def test_aggregators_follow_the_cores_and_samplers_do_not(repository, tmp_path, cores, instances):
    """At least four aggregators, as many as cores, at most sixteen; one sampler with all cores."""
    assert stage_repository(repository, tmp_path, "embedded", cores) == ("tinyseg",)
    assert _config(tmp_path / "tinyseg/config.pbtxt").instance_group[0].count == instances
    assert _config(tmp_path / "tinyseg_sampler/configs/embedded.pbtxt").instance_group[0].count == 1


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
    with pytest.raises(RepositoryError, match="holds no model"):
        stage_repository(tmp_path, tmp_path / "staged", "embedded", 2)
    with pytest.raises(RepositoryError, match="is not a folder"):
        stage_repository(tmp_path / "absent", tmp_path / "staged", "embedded", 2)
