"""An alarm of the audit log closes accept in a running server, and a named person opens it again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from equipoise_client import Route, UncertaintyClient
from equipoise_client.images import fit, read_image
from equipoise_clinic.audit import Kind, append
from equipoise_clinic.audit.closing import open_again
from equipoise_deploy.ports import Ports
from equipoise_deploy.serving.closing import AcceptSwitch
from equipoise_deploy.serving.server import TritonServer

pytestmark = [pytest.mark.triton, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
ACCEPTED = ROOT / "deploy/equipoise_deploy/demo/images/nuclei_072ff14c.png"


def test_an_alarm_sends_everything_to_review_until_accept_is_opened(tmp_path) -> None:
    """The server's own answer and record say why; nothing is restarted. Twenty wrong ones of twenty."""
    log, ticks = tmp_path / "decisions.jsonl", iter(range(0, 10**6, 1000))
    log.touch()
    for name in ("nuclei", "nuclei_sampler", "nuclei_first_pass"):
        shutil.copytree(ROOT / "model_repository" / name, tmp_path / "models" / name)
    with AcceptSwitch(log, lambda line: None, lambda: float(next(ticks))) as switch:
        server = TritonServer(tmp_path / "models", ports=Ports(0, 0, 0), closed=switch.folder)
        with server, UncertaintyClient(server.grpc_url) as client:
            image = fit(read_image(ACCEPTED), client.contract("nuclei"))

            def ask():
                return client.predict("nuclei", image.pixels, outputs=())

            before = ask()
            assert before.route is Route.ACCEPT
            for number in range(20):
                body = {**before.record, "input_digest": f"{number:064x}", "audit": True}
                decision = append(log, Kind.DECISION, body)
                append(log, Kind.VERDICT, {"decision": decision.sequence, "by": "dr.who", "verdict": "reject"})
            switch.look()
            closed = ask()
            assert closed.route is Route.REVIEW and "accept is closed" in closed.reason
            assert closed.record["reason"]["code"] == "closed" and "wrong more often" in closed.reason
            open_again(log, "nuclei", "dr.who", "the reader was mistaken")
            switch.look()
            assert ask().route is Route.ACCEPT
            shutil.rmtree(switch.folder)
            assert ask().route is Route.REVIEW
            switch.folder.mkdir()
