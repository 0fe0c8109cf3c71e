"""A published pair is complete, self-contained and written in one piece."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from equipoise_core.canonical import digest_of_file
from equipoise_core.contract import load_contract
from equipoise_export.publish.repository import PublishError, publish_pair


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


@pytest.mark.parametrize("missing", ["model_digest", "gpu"])
def test_a_proof_of_an_older_form_is_renewed(tiny_segmentation, tmp_path, missing):
    """Publishing the same model again is enough, where it does not say of which file; its policy stays."""
    publish_pair(tiny_segmentation, tmp_path, policy={"alpha": 0.1})
    proof = tmp_path / "tinyseg_sampler/1/proof.json"
    said = json.loads(proof.read_text())
    proof.write_text(json.dumps({key: value for key, value in said.items() if key != missing}))
    publish_pair(tiny_segmentation, tmp_path)
    assert json.loads(proof.read_text()) == said
    assert (tmp_path / "tinyseg/1/policy.json").is_file()
