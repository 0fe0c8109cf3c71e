"""A gateway's directory with everything but the parts that need a server."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from equipoise_clinic.audit import end
from equipoise_clinic.gateway.audit_log import write_out
from equipoise_clinic.gateway.intake import Intake
from equipoise_clinic.gateway.observe import Log, Metrics
from equipoise_clinic.gateway.spool import Spool
from equipoise_clinic.gateway.store import ORU, Kept, NewCase, NewObject, Store, Study, fingerprint_of

from .studies import read, study


@dataclass
class Desk:
    """Spool, store and intake over one directory, and what they wrote."""

    directory: Path
    reserve: int = 0
    text: io.StringIO = field(default_factory=io.StringIO)

    def __post_init__(self) -> None:
        self.spool = Spool(self.directory, self.reserve)
        self.store = Store(self.directory / "gateway.db")
        self.metrics = Metrics()
        self.log = Log(self.text)
        self.intake = Intake(self.spool, self.store, self.log, self.metrics, lambda point: None)
        self.audit = self.directory / "decisions.jsonl"

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.text.getvalue().splitlines()]

    def received(self, images: list[bytes] | None = None) -> Study:
        """A study that is due."""
        images = images or study()
        for image in images:
            self.intake.take(image, 0.0, "test")
        key = self.store.studies.key_of(str(read(images[0]).StudyInstanceUID))
        assert key is not None
        return self.store.studies.get(key)

    def decided(
        self, received: Study, objects: list[bytes] | None = None, case: str = "c" * 16, message: str = "", **changes
    ) -> Kept:
        """A result in the outbox, `message` the UID of an HL7 message of it; `changes` are fields of `NewCase`."""
        objects = study(count=3) if objects is None else objects
        made = [read(each) for each in objects]
        uids = tuple(str(each.SOPInstanceUID) for each in made)
        given = {
            "series": "1.2.3", "model": "tiny", "version": "f" * 64, "fingerprint": fingerprint_of(uids),
            "route": "review", "why": "too uncertain", "score": 0.25, "marked": False,
            "objects": tuple(
                NewObject(n, str(each.SOPClassUID), str(each.SeriesInstanceUID), str(each.SOPInstanceUID))
                for n, each in enumerate(made, start=1)
            ) + ((NewObject(len(made) + 1, ORU, "", message),) if message else ()),
            "volume": {"total": {"mean": 1.5, "sd": 0.1, "low": 1.2, "high": 1.8}},
            "record": {"format": "test/1", "model": "tiny", "route": "review"}, **changes,
        }  # fmt: skip
        self.spool.write_folder(self.spool.outbox(case), {f"{n}.dcm": each for n, each in enumerate(objects, start=1)})
        kept, _ = self.store.cases.keep(received, case, NewCase(**given), end(self.audit))
        return kept

    def dispatched(self, **handling: str) -> list[str]:
        """Writes the audit log and sends decisions on their way; states of what moved."""
        write_out(self.store, self.audit)
        moved = self.store.cases.dispatch({"accept": "send", "review": "hold", "reject": "hold", **handling})
        return [case.state for case in moved]


@pytest.fixture
def desk(tmp_path: Path):
    made = Desk(tmp_path / "gateway")
    yield made
    made.store.close()
