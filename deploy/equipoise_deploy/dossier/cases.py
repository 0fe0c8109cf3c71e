"""Decisions and verdicts of an audit log as a table, pseudonymous: the shape that registries and studies ask for.

A case's name is a keyed hash of its image's digest: whoever holds the key can find the case again, nobody else can.
Times are given to the day.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from equipoise_clinic.audit import Entry, Kind

COLUMNS = (
    "case", "day", "model", "model_digest", "policy_digest", "software", "shape", "spacing_mm", "route", "reason",
    "score", "case_score", "threshold", "samples", "ood_distance", "confidence", "volume_ml", "volume_low_ml",
    "volume_high_ml", "audited", "verdict", "verdict_day", "measured_ml",
)  # fmt: skip
"""Of the table; a cell that is not known is empty."""


def cases(lines: Iterable[Entry], model: str, key: bytes) -> Iterator[dict[str, Any]]:
    """One row for each decision that still has its content, in order; of a verdict the first one.

    Args:
        key: secret, at least 16 bytes.
    """
    kept = list(lines)
    verdicts: dict[int, Entry] = {}
    for entry in kept:
        if entry.kind is Kind.VERDICT and entry.body:
            verdicts.setdefault(int(entry.body["decision"]), entry)
    for entry in kept:
        if entry.kind is Kind.DECISION and entry.body and entry.body.get("model") == model:
            yield _row(entry, entry.body, verdicts.get(entry.sequence), key)


def _row(entry: Entry, body: Mapping[str, Any], verdict: Entry | None, key: bytes) -> dict[str, Any]:
    routed, judged = body.get("routed") or body, (verdict.body or {}) if verdict else {}
    total = (body.get("volume_ml") or {}).get("total") or {}
    computed = body.get("computed_by") or {}
    return {
        "case": hmac.new(key, str(body.get("input_digest")).encode(), hashlib.sha256).hexdigest()[:16],
        "day": entry.at[:10],
        "model": body.get("model"),
        "model_digest": body.get("model_digest"),
        "policy_digest": body.get("policy_digest"),
        "software": " ".join(f"{name} {computed[name]}" for name in ("triton", "onnxruntime") if computed.get(name)),
        "shape": "x".join(map(str, body.get("shape") or ())),
        "spacing_mm": "x".join(f"{mm:g}" for mm in body.get("spacing") or ()),
        "route": routed.get("route"),
        "reason": (body.get("reason") or {}).get("code"),
        **{
            name: body.get(name)
            for name in ("score", "case_score", "threshold", "samples", "ood_distance", "confidence")
        },
        "volume_ml": total.get("mean"),
        "volume_low_ml": total.get("low"),
        "volume_high_ml": total.get("high"),
        "audited": bool(body.get("audit")),
        "verdict": judged.get("verdict"),
        "verdict_day": verdict.at[:10] if verdict else None,
        "measured_ml": json.dumps(judged["volume_ml"]) if judged.get("volume_ml") else None,
    }


def write_cases(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes the table (CSV); returns how many rows. Raises OSError."""
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for row in rows:
            table.writerow(row)
            count += 1
    return count
