"""Why a case was routed as it was: a code with its values, and the one function that puts it into words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TEXTS: Mapping[str, str] = {
    "first_pass_failed": "the first pass: {message}",
    "sampler_failed": "{message}",
    "answer_not_finite": "the {model} returned numbers that are not finite",
    "clipped": "preprocessed intensities are beyond ±{limit:g}: the preprocessing does not suit this image",
    "too_few_samples": "only {drawn} of {planned} samples were drawn",
    "not_finite": "{name} is not a finite number",
    "no_policy": "{message}",
    "other_model": "the policy is for another model ({policy}, this is {model})",
    "unknown_number": "the policy looks at {name}, which is not known here",
    "no_first_pass": "the policy begins with a first pass, which this model does not have",
    "far_from_calibration": "far from the calibration cases: {name} {value:.4g} is outside {low:.4g} to {high:.4g}",
    "unlike_calibration": "unlike the calibration cases: {name} {value:.4g} is outside {low:.4g} to {high:.4g}",
    "closed": "accept is closed: {message}",
    "seed_named": "the caller named the seed: for study and replay only",
    "samples_named": "the caller named {drawn} samples: for study and replay only",
    "windows": "the image is larger than the network sees at once: no policy was made for answers of several windows",
    "group_not_certified": "the policy is certified by {by}: none was stated, or this one has no certificate",
    "no_spacing": "no spacing was given",
    "spacing": "spacing {given} mm is outside {expected} mm",
    "no_threshold": "the policy has no accept threshold",
    "score_accepted": "{score} {value:.4g} is at most {threshold:.4g}, after {after}",
    "score_too_high": "{score} {value:.4g} is above {threshold:.4g}, after {after}",
}
"""Code → text with the names of its values. Codes stand in records for years: none changes its meaning."""


class _Unknown:
    """A number that JSON cannot say, as it is read again from a record."""

    def __format__(self, spec: str) -> str:
        return "unknown"


_UNKNOWN = _Unknown()


@dataclass(frozen=True)
class Reason:
    """`code` is one of `TEXTS`; `values` are numbers and short texts by name, JSON-able."""

    code: str
    values: Mapping[str, Any]

    def __str__(self) -> str:
        after = _after(self.values["samples"]) if "samples" in self.values else ""
        values = {name: _UNKNOWN if value is None else value for name, value in self.values.items()}
        return TEXTS[self.code].format(**values, after=after)

    def document(self) -> dict[str, Any]:
        return {"code": self.code, "values": dict(self.values)}


def reason(code: str, **values: Any) -> Reason:
    return Reason(code, values)


def _after(samples: int) -> str:
    return "the first pass" if samples == 0 else f"{samples} sample{'' if samples == 1 else 's'}"


def rendered(document: Mapping[str, Any]) -> str | None:
    """The text of a recorded reason, from its code and values; None where they are no reason of ours."""
    values = document.get("values")
    try:
        return str(Reason(document["code"], values)) if isinstance(values, Mapping) else None
    except (KeyError, TypeError, ValueError):
        return None


def near_limit(document: Mapping[str, Any], tolerance: float) -> str | None:
    """In words, where a recorded reason rests on a number so near its limit that another device may see it otherwise.

    Args:
        document: as `Reason.document` writes it.
        tolerance: absolute for numbers below 1, relative above.
    """
    values = document.get("values")
    values = values if isinstance(values, Mapping) else {}
    value = values.get("value")
    for limit in (values.get(which) for which in ("threshold", "low", "high")):
        if not (isinstance(value, float) and isinstance(limit, float)):
            continue
        if abs(value - limit) <= tolerance * max(1.0, abs(limit)):
            return f"{values.get('score', values.get('name'))} {value:.6g} against {limit:.6g} ± {tolerance:g}"
    return None
