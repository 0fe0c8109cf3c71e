"""Both versions of a model on the same recent cases, each served by a Triton of its own, one after the other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ReleaseError
from ..ports import Ports
from ..serving.readiness import check_readiness
from ..serving.server import TritonServer

ACCEPT = "accept"


@dataclass(frozen=True)
class Pair:
    """One case under both versions. Figures are None where there is no decision.

    Attributes:
        case: name of the file, or of the folder with a series.
        image: digest of the model's input, from the record, or "".
        before, after: routes; no decision is `review`.
        score_before, score_after: case scores.
        volume_before, volume_after: total foreground, mL.
    """

    case: str
    image: str
    before: str
    after: str
    score_before: float | None
    score_after: float | None
    volume_before: float | None
    volume_after: float | None

    @property
    def loosened(self) -> bool:
        """An expert saw it before, and would not see it now."""
        return self.after == ACCEPT and self.before != ACCEPT


@dataclass(frozen=True)
class Comparison:
    """All cases, in the order of their names."""

    pairs: tuple[Pair, ...]

    @property
    def loosened(self) -> int:
        return sum(pair.loosened for pair in self.pairs)

    @property
    def changed(self) -> int:
        return sum(pair.before != pair.after for pair in self.pairs)

    def summary(self) -> dict[str, Any]:
        """For the log: without names of files, which could be a patient's."""
        return {
            "cases": len(self.pairs),
            "routes_changed": self.changed,
            "review_to_accept": self.loosened,
            "images": sorted(pair.image for pair in self.pairs),
        }


def compare(
    name: str, before: Path, after: Path, cases: Path, spacing: str | None = None, group: str | None = None
) -> Comparison:
    """Serves the releases `before` and `after` (folders) in turn.

    Args:
        cases: folder of image files and of folders with a DICOM series each.
        spacing: mm, as in `1,1,1`, for files that do not state their own.
        group: of all cases, for policies that are certified by group.

    Raises ReleaseError where there is no case, or the new version fails on one that the old one decides; DeployError
    where a version cannot be served.
    """
    files = _cases(cases)
    earlier, later = (_answers(name, folder, files, spacing, group) for folder in (before, after))
    undecided = [b["error"] for a, b in zip(earlier, later, strict=True) if b.get("error") and not a.get("error")]
    if undecided:  # they would count as review
        raise ReleaseError(
            f"{len(undecided)} of {len(files)} cases with a decision by the earlier version have none by the new one; "
            f"the first error: {undecided[0]}"
        )
    return Comparison(tuple(_pair(file, a, b) for file, a, b in zip(files, earlier, later, strict=True)))


def _cases(folder: Path) -> Sequence[Path]:
    if not folder.is_dir():
        raise ReleaseError(f"{folder} is not a folder; give one with recent cases as `equipoise predict` takes them")
    found = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    if not found:
        raise ReleaseError(f"{folder} has no case; give a folder of images as `equipoise predict` takes them")
    return found


def _answers(
    name: str, repository: Path, files: Sequence[Path], spacing: str | None, group: str | None
) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "equipoise_client.cli.main", "predict", name, *map(str, files), "--json"]
    command += ["--spacing", spacing] if spacing else []
    command += ["--group", group] if group else []
    with TritonServer(repository, ports=Ports(0, 0, 0)) as server:
        check_readiness(server.grpc_url, server.models)
        # Exit code 1: a file has no decision. It counts as review.
        run = subprocess.run([*command, "--url", server.grpc_url], capture_output=True, text=True, check=False)
    try:
        answers: list[dict[str, Any]] = json.loads(run.stdout)
    except ValueError as error:
        raise ReleaseError(f"the cases could not be sent: {run.stderr.strip()[-500:]}") from error
    if all(answer.get("error") for answer in answers):
        raise ReleaseError(f"no case got a decision; the first error: {answers[0]['error']}")
    codes = {((answer.get("record") or {}).get("reason") or {}).get("code") for answer in answers}
    if codes == {"group_not_certified"}:  # both versions would review all, whatever they are
        raise ReleaseError(
            "the policy is certified by group, and no case is of a certified one: name theirs by --group"
        )
    return answers


def _pair(file: Path, before: dict[str, Any], after: dict[str, Any]) -> Pair:
    return Pair(
        file.name,
        str((before.get("record") or after.get("record") or {}).get("input_digest", "")),
        before["route"],
        after["route"],
        before["case_score"],
        after["case_score"],
        *(None if not answer.get("volume_total") else answer["volume_total"]["mean"] for answer in (before, after)),
    )


def largest_shift(pairs: Sequence[Pair]) -> Iterator[tuple[str, float]]:
    """The largest change of the case score, and of the volume in relative terms, over cases that have both."""
    scores = [abs(p.score_after - p.score_before) for p in pairs if None not in (p.score_before, p.score_after)]  # type: ignore[operator]
    volumes = [
        abs(p.volume_after - p.volume_before) / max(abs(p.volume_before), 1e-9)
        for p in pairs
        if p.volume_before is not None and p.volume_after is not None
    ]
    if scores:
        yield "case score", max(scores)
    if volumes:
        yield "volume (relative)", max(volumes)
