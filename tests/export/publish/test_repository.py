"""A published pair is complete, self-contained and written in one piece."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from equipoise_core.canonical import digest_of_file
from equipoise_core.contract import load_contract
from equipoise_export.publish import repository
from equipoise_export.publish.repository import PublishError, publish_pair, renew_configurations
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from ...support.releases import give_policy


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_pair_has_every_file_of_the_layout(tiny_segmentation, tmp_path):
    """Triton finds the models, the aggregator its contract, policy and code, the reader the card and the proof."""
    folder = publish_pair(tiny_segmentation, tmp_path, policy={"threshold": 0.5}, card="# tinyseg\n")
    assert folder == tmp_path / "tinyseg"
    files = _files(tmp_path)
    assert files >= {
        "tinyseg/config.pbtxt",
        "tinyseg/README.md",
        "tinyseg/1/model.py",
        "tinyseg/1/contract.json",
        "tinyseg/1/policy.json",
        "tinyseg/1/equipoise_core/contract.py",
        "tinyseg_sampler/config.pbtxt",
        "tinyseg_sampler/configs/cpu.pbtxt",
        "tinyseg_sampler/configs/embedded.pbtxt",
        "tinyseg_sampler/configs/embedded_cuda.pbtxt",
        "tinyseg_sampler/1/model.onnx",
        "tinyseg_sampler/1/model.py",
        "tinyseg_sampler/1/proof.json",
    }
    assert not [file for file in files if "__pycache__" in file or ".publishing" in file]


def test_contract_names_the_sampler_file_by_its_digest(tiny_segmentation, tmp_path):
    """The model that answers is the one that was proved."""
    folder = publish_pair(tiny_segmentation, tmp_path)
    contract = load_contract(folder / "1" / "contract.json")
    (sampler,) = contract.samplers
    assert sampler.name == "tinyseg_sampler"
    assert sampler.digest == digest_of_file(tmp_path / "tinyseg_sampler" / "1" / "model.onnx")
    assert contract.digest == tiny_segmentation.contract.digest


def test_published_code_is_a_real_copy(tiny_segmentation, tmp_path):
    """A validated model keeps the code that decides for it, whatever happens to the installation."""
    folder = publish_pair(tiny_segmentation, tmp_path)
    assert not [path for path in folder.rglob("*") if path.is_symlink()]


def test_linked_code_is_relative_and_survives_moving_the_repository(tiny_segmentation, tiny_classifier, tmp_path):
    """Reference models share one copy of the code; the repository can be mounted anywhere."""
    first = tmp_path / "first"
    owner = publish_pair(tiny_segmentation, first)
    publish_pair(tiny_classifier, first, link_code_to=owner / "1")
    moved = first.rename(tmp_path / "second")
    for link in ("tinycls/1/model.py", "tinycls/1/equipoise_core", "tinycls_sampler/1/model.py"):
        path = moved / link
        assert path.is_symlink() and not path.readlink().is_absolute()
        assert path.exists()
    assert (moved / "tinycls/1/model.py").samefile(moved / "tinyseg/1/model.py")


def test_publishing_the_same_model_again_changes_nothing(tiny_segmentation, tmp_path):
    """A repeated export is harmless, and a policy that was calibrated meanwhile stays."""
    folder = publish_pair(tiny_segmentation, tmp_path)
    (folder / "1" / "policy.json").write_text("{}")
    before = {file: (tmp_path / file).stat().st_mtime_ns for file in _files(tmp_path)}
    publish_pair(tiny_segmentation, tmp_path)
    assert {file: (tmp_path / file).stat().st_mtime_ns for file in _files(tmp_path)} == before


def _changed(tiny):
    contract = replace(tiny.contract, samples=7)
    model = type(tiny.model).FromString(tiny.model.SerializeToString())
    del model.metadata_props[:]
    for key, value in contract.graph_metadata().items():
        model.metadata_props.add(key=key, value=value)
    return replace(tiny, model=model, contract=contract)


def test_another_model_is_not_overwritten_unless_asked(tiny_segmentation, tmp_path):
    """A model in use is replaced only on purpose, and then as a whole, its policy included."""
    folder = publish_pair(tiny_segmentation, tmp_path, policy={})
    with pytest.raises(PublishError, match="already holds another tinyseg_sampler and tinyseg; publish under another"):
        publish_pair(_changed(tiny_segmentation), tmp_path)
    assert load_contract(folder / "1" / "contract.json").samples == 20

    publish_pair(_changed(tiny_segmentation), tmp_path, replace=True)
    assert load_contract(folder / "1" / "contract.json").samples == 7
    assert not (folder / "1" / "policy.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tinyseg", "tinyseg_sampler"]


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
def test_failure_half_way_leaves_the_old_pair(tiny_segmentation, tmp_path, monkeypatch, failure):
    """All or nothing: when the second folder cannot be moved into place, the first is moved back."""
    publish_pair(tiny_segmentation, tmp_path)
    before = {file: digest_of_file(tmp_path / file) for file in _files(tmp_path)}
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "tinyseg" and self.parent.name == "new":
            raise failure
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    expected = PublishError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="disk full; nothing was changed" if expected is PublishError else None):
        publish_pair(_changed(tiny_segmentation), tmp_path, replace=True)
    assert {file: digest_of_file(tmp_path / file) for file in _files(tmp_path)} == before


def test_graph_of_another_contract_is_refused(tiny_segmentation, tmp_path):
    """The ONNX file says for which contract it was compiled; another one is not published over it."""
    foreign = replace(tiny_segmentation, contract=replace(tiny_segmentation.contract, samples=7))
    with pytest.raises(PublishError, match="compile it again with this contract"):
        publish_pair(foreign, tmp_path)
    assert not _files(tmp_path)


def test_proof_and_policy_are_written_as_given(tiny_segmentation, tmp_path):
    """What was measured at export lies beside the model, and says of which file."""
    publish_pair(tiny_segmentation, tmp_path, policy={"alpha": 0.1})
    proof = json.loads((tmp_path / "tinyseg_sampler/1/proof.json").read_text())
    (sampler,) = load_contract(tmp_path / "tinyseg/1/contract.json").samplers
    assert proof.pop("gpu") == json.loads(json.dumps(tiny_segmentation.placement.document()))
    assert proof == {**tiny_segmentation.proof.document(), "model_digest": sampler.digest}
    assert json.loads((tmp_path / "tinyseg/1/policy.json").read_text()) == {"alpha": 0.1}


def test_memory_is_measured_where_asked_and_kept_for_the_same_file(tiny_segmentation, tmp_path):
    """Measured again it could differ a little, and the configurations with it: the same model would be another one."""
    proof, config = tmp_path / "tinyseg_sampler/1/proof.json", tmp_path / "tinyseg_sampler/config.pbtxt"
    publish_pair(tiny_segmentation, tmp_path, measure=True)
    memory = json.loads(proof.read_text())["memory"]
    assert {run["samples"] for run in memory["runs"]} == {1, 20}
    assert all(run["bytes"] > 0 for run in memory["runs"])
    written = config.read_text()
    publish_pair(tiny_segmentation, tmp_path)
    publish_pair(tiny_segmentation, tmp_path, measure=True, replace=True)
    assert json.loads(proof.read_text())["memory"] == memory
    publish_pair(_changed(tiny_segmentation), tmp_path, replace=True)
    assert "memory" not in json.loads(proof.read_text())
    assert config.read_text() != written  # reckoned from the size, which is more


def test_configurations_follow_a_policy_that_came_later(tiny_segmentation, tmp_path):
    """Its stages decide on T, with which the sampler warms up; published again it is the same model."""
    folder = publish_pair(tiny_segmentation, tmp_path)
    policy = give_policy(folder)
    stages = tuple(replace(policy.stages[0], samples=samples) for samples in (5, 20))
    (folder / "1/policy.json").write_text(replace(policy, stages=stages).dumps())

    def warm_up() -> list[int]:
        text = (tmp_path / "tinyseg_sampler/config.pbtxt").read_text()
        return [each.inputs["masks"].dims[0] for each in text_format.Parse(text, ModelConfig()).model_warmup]

    assert warm_up() == [20, 20]
    renew_configurations(tmp_path, "tinyseg")
    assert warm_up() == [5, 5]
    publish_pair(tiny_segmentation, tmp_path)
    assert warm_up() == [5, 5]
    publish_pair(tiny_segmentation, tmp_path, replace=True)  # discards the policy
    assert warm_up() == [20, 20]


def test_a_proof_that_lacks_something_is_renewed(tiny_segmentation, tmp_path):
    """Of which file it is, or answers to repeat. Publishing the same model again is enough; its policy stays."""
    publish_pair(tiny_segmentation, tmp_path, policy={"alpha": 0.1})
    proof = tmp_path / "tinyseg_sampler/1/proof.json"
    whole = json.loads(proof.read_text())
    for older in ({"checks": []}, {**whole, "parity": None}, {}, []):
        proof.write_text(json.dumps(older))
        publish_pair(tiny_segmentation, tmp_path)
        assert json.loads(proof.read_text()) == whole
    proof.write_text(json.dumps({**whole, "parity": {"max_abs": 1e-9}}))
    publish_pair(tiny_segmentation, tmp_path)
    assert json.loads(proof.read_text()) != whole, "another run's evidence stays"
    assert (tmp_path / "tinyseg/1/policy.json").is_file()


@pytest.mark.parametrize("role", ["aggregator", "sampler"])
def test_a_wheel_carries_the_adapters_where_they_are_looked_for(role):
    """An editable installation takes the repository's own, and would not notice."""
    root = Path(__file__).resolve().parents[3]
    place = (repository._CARRIED / role / "model.py").relative_to(root / "export")
    assert f'= "{place}"' in (root / "pyproject.toml").read_text(encoding="utf-8")
