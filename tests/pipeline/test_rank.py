"""`equipoise rank` against the real server: real scores, real routes, labels of real images."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from equipoise_client import UncertaintyClient
from equipoise_client.cli.main import main
from equipoise_core.policy import load_policy
from PIL import Image

from ..support.asking import picture
from .conftest import REFERENCE

pytestmark = pytest.mark.triton

needs_data = pytest.mark.skipif(not os.environ.get("EQUIPOISE_DATA"), reason="needs EQUIPOISE_DATA")


def ranked(capsys, server, *words: object) -> dict[str, Any]:
    """What `equipoise rank … --json` says; it must succeed."""
    with pytest.raises(SystemExit) as ended:
        main(["rank", *map(str, words), "--url", server.grpc_url, "--json"])
    captured = capsys.readouterr()
    assert not ended.value.code, captured.err + captured.out
    return json.loads(captured.out)


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Path:
    """Six test images of nuclei with their truth beside them, a copy of one, and noise that is no image of cells."""
    from equipoise_lab.reference.data import load, reference_split

    data = load("nuclei")
    chosen = data.select(reference_split("nuclei", data.ids).test[:6])
    folder = tmp_path_factory.mktemp("rank") / "cells"
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for k, (image, target) in enumerate(zip(chosen.images, chosen.targets, strict=True)):
        Image.fromarray(image[0].astype(np.uint8)).save(folder / "images" / f"{k}.png")
        Image.fromarray((target > 0).astype(np.uint8)).save(folder / "labels" / f"{k}.png")
    shutil.copy(folder / "images" / "3.png", folder / "images" / "3copy.png")
    noise = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "images" / "noise.png")
    return folder


@pytest.mark.slow
@needs_data
def test_real_images_are_ranked_and_accepted_ones_labelled(capsys, server, cells, tmp_path):
    """A copy is not proposed beside its original, noise not at all; labels of what is accepted are mostly right."""
    said = ranked(capsys, server, "nuclei", cells, "--count", "7", "--pseudo-labels", tmp_path / "guessed")
    rows = {Path(row["file"]).stem: row for row in said["ranking"]}
    assert len(rows) == 8 and said["score"] == "rim_epistemic"
    assert (rows["noise"]["route"], rows["noise"]["rank"]) == ("reject", None)
    suitable = {name for name, row in rows.items() if row["route"] != "reject"}
    assert {name for name, row in rows.items() if row["proposed"]} == suitable - {"3copy"}
    assert len(suitable) >= 6 and {"3", "3copy"} <= suitable
    assert rows["3copy"]["score"] == rows["3"]["score"] and rows["3copy"]["distance"] == 0.0
    first = min((row for row in rows.values() if row["rank"]), key=lambda row: row["rank"])
    assert first["score"] == max(row["score"] for row in rows.values() if row["rank"])

    accepted = {name for name, row in rows.items() if row["route"] == "accept"}
    assert len(accepted) >= 3, "or the rest shows nothing"
    manifest = json.loads((tmp_path / "guessed" / "pseudo-labels.json").read_text())
    policy = load_policy(REFERENCE / "nuclei" / "1" / "policy.json")
    assert policy.guarantee is not None
    assert (manifest["policy_digest"], manifest["model_digest"]) == (policy.digest, policy.model_digest)
    assert (manifest["alpha"], manifest["delta"]) == (policy.guarantee.alpha, policy.guarantee.delta)
    assert {Path(entry["file"]).stem for entry in manifest["pseudo_labels"]} == accepted
    for entry in manifest["pseudo_labels"]:
        guess = np.asarray(Image.open(tmp_path / "guessed" / entry["label"]))
        truth = np.asarray(Image.open(cells / "labels" / f"{Path(entry['file']).stem[0]}.png"))
        sure = guess != 255
        assert set(np.unique(guess)) <= {0, 1, 255} and sure.mean() == pytest.approx(1 - entry["ignored"], abs=1e-6)
        assert 0.5 < sure.mean() < 1.0
        overlap = 2 * (guess[sure] * truth[sure]).sum() / (guess[sure].sum() + truth[sure].sum())
        assert overlap > 0.8, f"{entry['file']}: Dice {overlap:.3f} where the model is sure"


@pytest.mark.slow
@needs_data
def test_scores_are_those_of_all_samples(capsys, server, cells):
    """Also of images that the policy lets stop early, whose record says a lower number."""
    said = ranked(capsys, server, "nuclei", cells)
    policy = load_policy(REFERENCE / "nuclei" / "1" / "policy.json")
    early = 0
    with UncertaintyClient(server.grpc_url) as client:
        for row in said["ranking"]:
            pixels = np.asarray(Image.open(row["file"])).astype(np.float32)[None]
            early += client.predict("nuclei", pixels, outputs=()).samples_used < policy.samples
            full = client.predict("nuclei", pixels, samples=policy.samples, outputs=())
            assert row["score"] == pytest.approx(full.record["scores"]["rim_epistemic"], abs=1e-5)
    assert early, "or this shows nothing"


@pytest.mark.slow
@needs_data
def test_labels_of_a_scan_lie_in_its_own_grid(capsys, server, tmp_path):
    """A NIfTI file that is stored mirrored and transposed gets its labels so; they overlap an expert's."""
    folder = Path(os.environ["EQUIPOISE_DATA"]) / "hippocampus"
    written = 0
    for path in sorted((folder / "images").glob("*.nii.gz"))[:4]:
        image, truth = (nibabel.load(folder / kind / path.name) for kind in ("images", "labels"))
        turn = nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt("PLS")
        )
        turned, answer = image.as_reoriented(turn), truth.as_reoriented(turn)
        nibabel.save(turned, tmp_path / path.name)
        guessed = tmp_path / f"guessed-{path.name}"
        said = ranked(capsys, server, "hippocampus", tmp_path / path.name, "--pseudo-labels", guessed)
        if said["ranking"][0]["route"] != "accept":
            continue
        written += 1
        (label,) = guessed.glob("*.pseudo-label.nii.gz")
        found = nibabel.load(label)
        np.testing.assert_allclose(found.affine, turned.affine, atol=1e-5)
        guess, expert = np.asarray(found.dataobj), np.asarray(answer.dataobj)
        sure = guess != 255
        overlap = 2 * ((guess > 0) & (expert > 0))[sure].sum() / ((guess > 0)[sure].sum() + (expert > 0)[sure].sum())
        assert guess.shape == expert.shape and overlap > 0.8
    assert written, "none of four scans was accepted: this shows nothing"


def test_a_model_without_a_policy_writes_no_labels(capsys, server, contracts, tmp_path):
    """It ranks all the same, and says why there are no labels."""
    for seed in range(3):
        np.save(tmp_path / f"{seed}.npy", picture(contracts["tinyseg"], (16, 12), seed))
    words = ["tinyseg", *sorted(tmp_path.glob("*.npy")), "--spacing", "1,1", "--pseudo-labels", tmp_path / "guessed"]
    said = ranked(capsys, server, *words)
    assert sum(row["proposed"] for row in said["ranking"]) == 3
    assert said["pseudo_labels"]["written"] == 0 and "equipoise calibrate" in said["pseudo_labels"]["why"]
    assert not list((tmp_path / "guessed").iterdir())


def test_a_classifier_is_ranked_by_what_the_network_does_not_know(capsys, server, contracts, tmp_path):
    for seed in range(3):
        np.save(tmp_path / f"{seed}.npy", picture(contracts["pneumonia"], (28, 28), seed))
    said = ranked(capsys, server, "pneumonia", tmp_path, "--include-rejected")
    assert said["score"] == "mutual_information" and len(said["ranking"]) == 3
    assert all(row["rank"] and row["score"] >= 0.0 for row in said["ranking"])
