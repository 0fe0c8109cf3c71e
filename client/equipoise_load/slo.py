"""Service level objectives: `p99=250ms,errors=0.1%`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from equipoise_client.errors import InvalidInput

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_FORM = "expected objectives such as p99=250ms,errors=0.1%,achieved=95%"


@dataclass(frozen=True)
class Objective:
    """One objective.

    Attributes:
        name: `p50` … `p99.9`, `max` or `mean` of the latency in ms (at most), `errors` as a share of the requests (at
            most), `achieved` as a share of the offered rate (at least).
        limit: in ms, or as a share 0 to 1.
    """

    name: str
    limit: float

    def measured(self, report: Mapping[str, Any]) -> float | None:
        """The report's figure; None where it has none (no request was answered)."""
        if self.name == "errors":
            return float(report["requests"]["error_share"])
        if self.name == "achieved":
            return None if report["achieved_share"] is None else float(report["achieved_share"])
        value = report["latency_ms"].get(self.name)
        return None if value is None else float(value)

    def met(self, report: Mapping[str, Any]) -> bool:
        value = self.measured(report)
        if value is None:
            return self.name == "achieved"  # a closed loop offers no rate
        return value >= self.limit if self.name == "achieved" else value <= self.limit

    def __str__(self) -> str:
        if self.name in ("errors", "achieved"):
            return f"{self.name} {'≥' if self.name == 'achieved' else '≤'} {self.limit:.4g}"
        return f"{self.name} ≤ {self.limit:g} ms"


_FEW_ERRORS = Objective("errors", 0.01)


def parse_slo(text: str) -> tuple[Objective, ...]:
    """Raises InvalidInput that names the part which is not an objective."""
    return tuple(_objective(part.strip()) for part in text.split(",") if part.strip())


def complete(objectives: tuple[Objective, ...]) -> tuple[Objective, ...]:
    """Where latencies have an objective and errors have none, `errors ≤ 1 %` is added.

    Percentiles hold what was answered; without a word about the rest, a server that refuses nearly everybody at once
    would keep its promise.
    """
    named = {objective.name for objective in objectives}
    return (*objectives, _FEW_ERRORS) if named - {"errors", "achieved"} and "errors" not in named else objectives


def _objective(part: str) -> Objective:
    name, _, value = part.partition("=")
    share = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", value)
    time = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s)", value)
    if name in ("errors", "achieved") and share:
        limit = float(share[1]) / (100.0 if share[2] else 1.0)
        if limit > 1.0:
            raise InvalidInput(f"--slo {part}: a share is at most 1 or 100%; {_FORM}")
        return Objective(name, limit)
    if name in PERCENTILES or name in ("max", "mean"):
        if time:
            return Objective(name, float(time[1]) * _UNITS[time[2]])
        raise InvalidInput(f"--slo {part}: a time needs a unit (us, ms, s); {_FORM}")
    raise InvalidInput(f"--slo {part}: {_FORM}; percentiles are {', '.join(PERCENTILES)}")


PERCENTILES = {"p50": 50.0, "p75": 75.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p99.9": 99.9}
"""Name → percentile: what a report states."""
