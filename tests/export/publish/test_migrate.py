"""Pairs of the earlier format: the same weights and generator in this one; what cannot be kept is said."""

import json

import numpy as np
import onnx
import pytest
from equipoise_core.canonical import canonical_json, digest_of, digest_of_model
from equipoise_core.case import Case
from equipoise_core.contract import PHILOX, ContractError
from equipoise_core.decision import Route
from equipoise_core.loading import load_model
from equipoise_core.sampling import assess
from equipoise_export.graph.session import published_samplers
from equipoise_export.publish.migrate import EARLIER, migrate
from equipoise_export.publish.repository import publish_pair


def as_before(folder):
    """A published pair, rewritten as the earlier version would have written it."""
    path = folder / "1" / "contract.json"
    document = json.loads(path.read_text())
    for key in ("digest", "generator", "precision", "states_moments", "first_pass"):
        del document[key]
    document["format"] = EARLIER
    (sampler,) = document["samplers"]
    file = folder.parent / sampler["name"] / "1" / "model.onnx"
    graph = {key: value for key, value in document.items() if key != "samplers"}
    model = onnx.load(file)
    del model.metadata_props[:]
    stated = {"equipoise.contract": canonical_json(graph), "equipoise.digest": digest_of(graph)}
    onnx.helper.set_model_props(model, stated)
    onnx.save(model, file)
    sampler["digest"] = digest_of_model(file)
    proof = file.with_name("proof.json")
    proof.write_text(json.dumps({**json.loads(proof.read_text()), "model_digest": sampler["digest"]}))
    path.write_text(json.dumps({**document, "digest": digest_of(graph)}))


@pytest.fixture
def earlier(compiled_unet, tmp_path):
    folder = publish_pair(compiled_unet, tmp_path / "old", card="# card\n")
    as_before(folder)
    (folder / "1" / "policy.json").write_text('{"format": "equipoise-policy/2"}')
    return folder


def test_a_migrated_pair_loads_and_draws(earlier, tmp_path):
    with pytest.raises(ContractError, match="equipoise migrate"):
        load_model(earlier / "1")
    folder, lost = migrate(earlier.name, earlier.parent, tmp_path / "new")
    model = load_model(folder / "1")
    assert model.contract.generator == PHILOX
    assert (folder / "README.md").read_text() == "# card\n"
    assert not (folder / "1" / "policy.json").exists() and "calibrate again" in lost[0]
    samplers, _ = published_samplers(folder.parent, model.contract)
    image = np.random.default_rng(0).normal(size=(model.contract.channels, *model.contract.nominal)).astype(np.float32)
    answer = assess(model, Case(image, seed=3, samples=4), samplers)
    assert answer.decision.route is Route.REVIEW and answer.uncertainty.variance.max() > 0
    before, after = (
        onnx.load(each.parent / f"{each.name}_sampler" / "1" / "model.onnx").graph for each in (earlier, folder)
    )
    assert before == after


def test_what_is_no_earlier_pair_is_refused_and_nothing_is_written(earlier, compiled_unet, tmp_path):
    """A pair of this version, a file that its contract does not name, a proof of another file."""
    now = publish_pair(compiled_unet, tmp_path / "now")
    with pytest.raises(ContractError, match="nothing to migrate"):
        migrate(now.name, now.parent, tmp_path / "new")
    proof = earlier.parent / f"{earlier.name}_sampler" / "1" / "proof.json"
    good = proof.read_text()
    proof.write_text(json.dumps({**json.loads(good), "model_digest": "00" * 32}))
    with pytest.raises(ContractError, match="another file"):
        migrate(earlier.name, earlier.parent, tmp_path / "new")
    proof.write_text(good)
    file = proof.with_name("model.onnx")
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(ContractError, match="restore the file"):
        migrate(earlier.name, earlier.parent, tmp_path / "new")
    assert not (tmp_path / "new").exists()
