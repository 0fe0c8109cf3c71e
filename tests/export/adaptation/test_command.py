"""`equipoise adapt` on the committed pneumonia model, with images that anybody can draw."""

import json
import stat

import numpy as np
import pytest
from equipoise_core.case import Case
from equipoise_core.loading import load_model
from equipoise_core.sampling import assess
from equipoise_export.adaptation.command import app
from equipoise_export.calibration.command import app as calibrate_app
from equipoise_export.graph.session import OnnxSampler
from typer.testing import CliRunner

from ..calibration.test_command import archive, images, repository  # noqa: F401  # fixtures


def adapt(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def said(result):
    return " ".join(result.output.split())


@pytest.fixture
def site(tmp_path, repository):  # noqa: F811
    """Images of the site, and labelled cases whose labels are what the model answers."""
    sampler = OnnxSampler(repository / "pneumonia_sampler" / "1" / "model.onnx")
    model = load_model(repository / "pneumonia" / "1")

    def written(n, seed):
        drawn = images(n, seed)
        answers = [assess(model, Case(i[None].astype(np.float32)), [sampler]).uncertainty.labels[0] for i in drawn]
        path = tmp_path / f"site{seed}.npz"
        np.savez(path, images=drawn, labels=np.array(answers), ids=np.array([f"Mr {seed} {k}" for k in range(n)]))
        return path

    return written


@pytest.mark.slow
def test_a_site_begins_closed_and_is_opened_by_its_own_cases(repository, archive, site, tmp_path):  # noqa: F811
    """From the calibration elsewhere to an open `accept` here, in three calls; installed only on request."""
    result = CliRunner().invoke(
        calibrate_app, ["pneumonia", "--data", str(archive), "--repository", str(repository), "--json"]
    )
    assert result.exit_code == 0, result.output
    policy = repository / "pneumonia" / "1" / "policy.json"
    elsewhere, folder = policy.read_bytes(), tmp_path / "st-anna"
    common = ("pneumonia", "--repository", repository, "--out", folder)
    assert "give --data" in said(adapt(*common, "--labelled", site(4, 1)))
    few = adapt(*common, "--data", site(8, 1))
    assert few.exit_code == 1 and "at least 40" in said(few) and not folder.exists()

    first = adapt(*common, "--data", site(60, 2), "--json")
    assert first.exit_code == 0, first.output
    document = json.loads(first.stdout)
    assert not document["open"] and document["site"] == "st-anna" and document["labelled"] == 0
    assert policy.read_bytes() == elsewhere
    assert stat.S_IMODE((folder / "state.json").stat().st_mode) == 0o600
    assert "Mr 2" not in (folder / "state.json").read_text()

    again = adapt(*common, "--labelled", site(60, 2), "--json")
    assert json.loads(again.stdout)["labelled"] == 0  # they fixed what is typical
    second = adapt(*common, "--labelled", site(90, 3), "--install", "--json")
    assert second.exit_code == 0, second.output
    document = json.loads(second.stdout)
    assert document["labelled"] == 90 and document["open"], document["accept"]
    model = load_model(repository / "pneumonia" / "1")
    assert model.in_force.digest == document["policy"] and model.in_force.adapted.site == "st-anna"

    third = adapt(*common, "--labelled", site(90, 3))
    assert "90 labelled cases do not count: of a patient who counted before" in said(third)
    assert "already" in said(adapt("pneumonia", "--repository", repository, "--out", tmp_path / "b", "--data", archive))
    assert "the first call fixed" in said(adapt(*common, "--alpha", "0.2"))
    assert "accept is open" in (folder / "report.html").read_text()


def test_a_model_that_was_not_calibrated_with_its_table_is_refused(repository, archive, tmp_path):  # noqa: F811
    """The published policy has no table beside it: the message says where it comes from."""
    result = adapt("pneumonia", "--repository", repository, "--out", tmp_path / "a", "--data", archive)
    assert result.exit_code == 1 and "pneumonia.calibration.json is missing" in said(result)
    assert not (tmp_path / "a").exists()
