"""From a study to a doctor's verdict and back: Orthanc, Triton, the gateway, the worklist, a real Chromium."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from equipoise_clinic.review.identity import Reviewers

from ..support.asking import poll
from ..support.gateways import configuration, gateway, rows, send
from ..support.orthanc import orthanc
from ..support.review_page import chromium, tab  # noqa: F401 (fixtures)
from ..support.studies import PLANTED, encoded, read
from .test_gateway import FAST, HIPPOCAMPUS, copied, crop, needs_data, results, uid_of

pytestmark = [pytest.mark.slow, pytest.mark.triton, pytest.mark.pacs, pytest.mark.root, needs_data]

VIEWER = "https://pacs.example.org/viewer?StudyInstanceUIDs={study}"


def noisy(images: list[bytes], share: float) -> list[bytes]:
    """Rician noise of `share` standard deviations of the series."""
    datasets = [read(each) for each in images]
    pixels = np.stack([each.pixel_array for each in datasets]).astype(float)
    random, scale = np.random.default_rng(1), share * pixels.std()
    spoilt = np.hypot(pixels + random.normal(0, scale, pixels.shape), random.normal(0, scale, pixels.shape))
    for dataset, plane in zip(datasets, spoilt, strict=True):
        dataset.PixelData = (
            np.clip(plane, 0, np.iinfo(dataset.pixel_array.dtype).max).astype(dataset.pixel_array.dtype).tobytes()
        )
    return [encoded(each) for each in datasets]


@pytest.mark.timeout(600)
def test_a_verdict_releases_what_was_held(server, tmp_path, tab):  # noqa: F811
    """A sharp image and two noisy ones are held; the page shows them; what is accepted arrives, nothing else does.

    EQUIPOISE_SCREENSHOT names a file that gets the picture for the README.
    """
    quiet = 10.0  # as long as a sender may stand still: what comes later than that is another delivery
    studies = [noisy(copied(crop()), share) for share in (0.0, 0.15, 0.35)]
    with orthanc(tmp_path / "pacs") as site:
        settings = configuration(
            tmp_path / "a", server.grpc_url, HIPPOCAMPUS, receive={"port": 0, "quiet_seconds": quiet},
            deliver={"stow_url": site.dicomweb_url, **FAST, "accept": "hold", "review": "hold", "reject": "hold"},
            review={"port": 0, "viewer": VIEWER},
        )  # fmt: skip
        with gateway(settings) as running:
            for each in studies:
                assert set(send(running.ports["receive"], each)) == {0}
            send(running.ports["receive"], copied(crop())[::2][:-6])  # every second slice is missing: thick and too few
            poll(lambda: running.states("cases") == ["review"] * 3, "all wait for a doctor", 240)
            poll(lambda: running.states("studies").count("rejected") == 1, "the rejected one")
            assert site.instances() == {}
            token = Reviewers(running.directory / "reviewers.json").add("dr.who")
            command = [sys.executable, "-m", "equipoise_client.cli.main", "review", str(settings)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as review:
                try:
                    url = review.stdout.readline().strip()
                    tab.goto(url)
                    tab.get_by_label("Your token").fill(token)
                    tab.keyboard.press("Enter")
                    tab.get_by_text("Signed in as").wait_for()
                    tab.wait_for_load_state("load")
                    told = [each.inner_text() for each in tab.locator("h2").all()][:3]
                    scores = [float(each.split()[-1]) for each in told]
                    assert scores == sorted(scores, reverse=True)
                    images = tab.locator("article img")
                    assert [each.evaluate("each => each.naturalWidth > 300") for each in images.all()] == [True] * 3
                    tab.screenshot(path=os.environ.get("EQUIPOISE_SCREENSHOT") or tmp_path / "worklist.png")
                    chosen = tab.locator("article").last
                    case = chosen.get_attribute("data-case")
                    chosen.get_by_role("button", name="Accept").click()
                    tab.get_by_role("status").get_by_text("Accepted.").wait_for()
                    tab.locator("article").first.get_by_role("button", name="Reject").press("Enter")
                    tab.get_by_role("status").get_by_text("Rejected").wait_for()
                finally:
                    review.terminate()
            poll(lambda: "delivered" in running.states("cases"), "what was accepted is sent")
            ((uid,),) = rows(
                running.directory, f"SELECT s.uid FROM cases c JOIN studies s ON s.key = c.study WHERE c.key = '{case}'"
            )
            assert results(site, uid) == ["OT", "OT", "SEG", "SR"]
            assert {tags["StudyInstanceUID"] for tags in site.instances().values()} == {uid}
            assert uid in {uid_of(each) for each in studies}
            assert sorted(running.states("cases")) == ["delivered", "review", "withheld"]
            running.stop()
            audit = (running.directory / "decisions.jsonl").read_text()
            kinds = [json.loads(line)["kind"] for line in audit.splitlines()]
            assert kinds == ["decision"] * 3 + ["verdict"] * 2
            written = audit.encode() + b"".join(file.read_bytes() for file in running.directory.glob("gateway.db*"))
            assert not [value for value in PLANTED.values() if value.encode() in written]
