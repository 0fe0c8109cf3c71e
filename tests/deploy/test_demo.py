"""The demo: its files are what a client would send, and it ends without a failed check."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from equipoise_client.images import fit, read_image
from equipoise_core.loading import load_model
from equipoise_deploy.demo.cases import demo_cases
from equipoise_deploy.demo.command import run_demo

from ..support.review_page import chromium, tab  # noqa: F401 (fixtures)

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
def test_every_check_of_the_demo_holds_and_its_page_shows_all(tmp_path: Path, tab: Any) -> None:  # noqa: F811
    """EQUIPOISE_SCREENSHOT names a file that gets a picture of the page."""
    assert run_demo(REPOSITORY, tmp_path) == []
    tab.goto((tmp_path / "index.html").as_uri())
    pictures = [each.evaluate("each => each.naturalWidth > 300") for each in tab.locator("article img").all()]
    assert len(pictures) >= 6 and all(pictures) and not tab.problems
    assert tab.locator("nav li").count() == tab.locator("article").count()
    tab.screenshot(path=os.environ.get("EQUIPOISE_SCREENSHOT") or tmp_path / "demo.png", full_page=True)
