"""Tells the aggregators which models may accept nothing, as the audit log says: one file for each in a folder.

The aggregator looks for the file at each request (`EQUIPOISE_CLOSED` names the folder) and routes to review, with the
file's words as the reason. A folder that is missing closes every model.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from equipoise_clinic.audit import AuditError
from equipoise_clinic.audit.closing import Closing

from ..errors import DeployError

VARIABLE = "EQUIPOISE_CLOSED"
EVERYTHING = "@everything"
"""File that closes every model; no model has such a name."""

_EVERY = 20.0  # seconds between looks at the log


def obeys(model: Path) -> bool:
    """Whether the code that a public model carries looks at the folder; what cannot be read does not."""
    try:
        return VARIABLE in (model / "1" / "model.py").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


class AcceptSwitch:
    """Follows an audit log. Context manager; `folder` exists inside.

    Args:
        log: `decisions.jsonl`; has to exist, since a misspelt name would protect nobody. Raises DeployError.
        report: called with one line whenever a model is closed or opened.
    """

    def __init__(self, log: Path, report: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        try:
            there = log.is_file()
        except OSError as error:
            raise DeployError(f"--close-on-alarm {log}: cannot be read: {error.strerror}") from error
        if not there:
            raise DeployError(
                f"--close-on-alarm {log}: there is no such audit log; expected the `decisions.jsonl` that the gateway "
                "or `equipoise audit append` writes. Before the first decision create it empty"
            )
        try:
            self._closing = Closing(log)
        except AuditError as error:
            raise DeployError(f"--close-on-alarm: {error}") from error
        self._report, self._clock = report, clock
        self._looked = float("-inf")
        self.folder = Path(tempfile.mkdtemp(prefix="equipoise-closed-"))
        self.closed: Mapping[str, str] = {}

    def __enter__(self) -> AcceptSwitch:
        self.look()
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def look(self) -> None:
        """What the log says by now; not more often than it is worth."""
        if self._clock() - self._looked < _EVERY:
            return
        self._looked = self._clock()
        try:
            self._closing.look()
            found = self._closing.closed or {}
        except (AuditError, OSError) as error:
            found = {EVERYTHING: f"the audit log cannot be read ({type(error).__name__})"}
        try:
            self._apply(found)
        except OSError as error:  # a missing folder closes every model; it is not made again, which would open them
            self._report(f"what closes accept cannot be written: {type(error).__name__}; start again to be sure")

    def _apply(self, closed: Mapping[str, str]) -> None:
        for model, why in closed.items():
            part = self.folder / f"{model}.part"
            part.write_text(why, encoding="utf-8")
            part.rename(self.folder / model)
            if model not in self.closed:
                self._report(f"ACCEPT IS CLOSED for {_name(model)}: {why}; everything goes to review")
        for model in self.closed.keys() - closed.keys():
            (self.folder / model).unlink()
            self._report(f"accept is open again for {_name(model)}")
        self.closed = dict(closed)


def _name(model: str) -> str:
    return "every model" if model == EVERYTHING else model
