"""What the build of the reference models keeps beside them: `equipoise adapt` works on a reference model as it is."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from equipoise_core.case import Case
from equipoise_core.loading import load_model
from equipoise_core.sampling import assess
from equipoise_export import adapt
from equipoise_export.calibration.calibrate import table_file, write_whole
from equipoise_export.calibration.table import load_table
from equipoise_export.graph.session import OnnxSampler
from equipoise_lab.reference import build
from equipoise_lab.reference.data import Dataset, Split
from equipoise_lab.reference.specs import PNEUMONIA

from ...export.calibration.test_command import images

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"


def test_a_site_begins_from_a_reference_model(tmp_path, monkeypatch) -> None:
    """Policy and table belong together, one case of each calibration image; the site's policy accepts nothing yet."""
    for name in ("pneumonia", "pneumonia_sampler", "pneumonia_first_pass"):
        shutil.copytree(REPOSITORY / name, tmp_path / "models" / name, symlinks=False)
    repository, folder = tmp_path / "models", tmp_path / "models" / "pneumonia" / "1"
    model = replace(load_model(folder), policy=None)
    sampler = OnnxSampler(repository / "pneumonia_sampler" / "1" / "model.onnx")
    drawn = [image[None].astype(np.float32) for image in images(160)]
    labels = [assess(model, Case(image), [sampler]).uncertainty.labels[0] for image in drawn]
    ids = tuple(f"case {index}" for index in range(160))
    split = Split(ids[:50], ids[50:], ())
    monkeypatch.setattr(build, "reference_split", lambda name, all_ids: split)
    data = Dataset(ids, tuple(drawn), tuple(labels))
    policy, table = build.choose_on_split(model, repository, PNEUMONIA, data, (20,))
    assert policy.guarantee is not None and table.policy_digest == policy.digest
    write_whole(folder / "policy.json", policy.dumps())
    write_whole(table_file(repository, "pneumonia"), table.dumps())
    assert len(load_table(table_file(repository, "pneumonia")).cases) == len(split.calibration)
    np.savez(tmp_path / "site.npz", images=images(60, seed=1))
    found = adapt("pneumonia", repository=repository, folder=tmp_path / "site", data=tmp_path / "site.npz")
    assert found.verdict.policy.adapted.source == policy.digest and found.verdict.policy.guarantee is None


@pytest.mark.parametrize("name", ["hippocampus", "pneumonia", "nuclei"])
def test_a_published_table_belongs_to_the_published_policy(name) -> None:
    """A table that another build has written would be refused by `adapt`."""
    path = table_file(REPOSITORY, name)
    if not path.exists():
        pytest.skip("not built yet: python -m equipoise_lab.reference.build")
    assert load_table(path).policy_digest == load_model(REPOSITORY / name / "1").policy.digest
