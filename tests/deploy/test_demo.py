"""The demo: its files are what a client would send, and it ends without a failed check."""

from __future__ import annotations

from pathlib import Path

import pytest
from equipoise_client.images import fit, read_image
from equipoise_core.loading import load_model
from equipoise_deploy.demo.cases import demo_cases
from equipoise_deploy.demo.command import run_demo

REPOSITORY = Path(__file__).parents[2] / "model_repository"


def test_images_of_the_test_splits_fit_their_models(tmp_path: Path) -> None:
    """Nothing about the file itself holds an answer back, nor is anything said of a patient but an age."""
    cases = [case for case in demo_cases(tmp_path) if case.must_be]
    assert {(case.model, case.must_be) for case in cases} >= {
        ("hippocampus", "accept"), ("hippocampus", "review"), ("nuclei", "accept"), ("pneumonia", "accept"),
    }  # fmt: skip
    for case in cases:
        prepared = fit(read_image(case.path), load_model(REPOSITORY / case.model / "1").contract)
        assert not prepared.doubts and not prepared.contradictions, case.path.name


@pytest.mark.slow
@pytest.mark.triton
def test_every_check_of_the_demo_holds(tmp_path: Path) -> None:
    assert run_demo(REPOSITORY, tmp_path) == []
    assert (tmp_path / "index.html").is_file()
