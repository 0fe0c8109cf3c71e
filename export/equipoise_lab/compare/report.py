"""The result of a comparison: as one JSON object, and as a page made from that object and the plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from equipoise_core.contract import Task
from equipoise_export import page
from equipoise_export.calibration.choose import Goals
from equipoise_export.calibration.figures import exact_share

from .answers import Answers, Subject
from .bootstrap import LEVEL, Difference, Resampled
from .figures import Figure
from .material import Material
from .plots import plots
from .timing import IMAGES, ROUNDS, Milliseconds

FORMAT = "equipoise-comparison/1"


@dataclass(frozen=True)
class Comparison:
    """All that was measured."""

    material: Material
    goals: Goals
    subjects: Sequence[Subject]
    every: Sequence[Answers]
    resampled: Sequence[Resampled]
    differences: Sequence[Difference]
    times: Sequence[Milliseconds]
    repetitions: int
    seed: int

    @property
    def figures(self) -> list[Figure]:
        return [each.figure for each in self.resampled]


def document(comparison: Comparison) -> dict[str, Any]:
    """JSON-able, without NaN: what does not exist is null."""
    first, material, goals = comparison.subjects[0].contract, comparison.material, comparison.goals
    others, compared = len(comparison.every) - 1, [f for f in comparison.figures if f.better]
    return {
        "format": FORMAT,
        "data": material.title,
        "shift": material.shift or None,
        "task": first.task.value,
        "classes": list(first.classes),
        "loss": goals.loss,
        "alpha": goals.alpha,
        "delta": goals.delta,
        "volume_level": goals.level,
        "cases": {
            name: {"cases": len(cases), "patients": len({case.patient for case in cases})}
            for name, cases in material.parts.items()
        },
        "wrong_test_cases": {each.name: int(each.loss.sum()) for each in comparison.every},
        "bootstrap": {
            "level": LEVEL,
            "repetitions": comparison.repetitions,
            "seed": comparison.seed,
            "resampled": "patients, the same resamples for all models",
            "interval": "percentile",
        },
        "timing": {"images": min(IMAGES, len(material.test)), "rounds": ROUNDS},
        "figures": [
            {
                "name": figure.name,
                "title": figure.title,
                "meaning": figure.meaning,
                "better": figure.better.value if figure.better else None,
            }
            for figure in comparison.figures
        ],
        "strangeness_equal": _strangeness_equal(comparison),
        "models": [_model(comparison, index) for index in range(len(comparison.every))],
        "differences": [
            {
                "model": each.model,
                "to": each.to,
                "figure": each.figure,
                **asdict(each.of),
                "joint_low": each.joint.low,
                "joint_high": each.joint.high,
                "shown": each.shown,
                "words": each.words,
            }
            for each in comparison.differences
        ],
        "comparisons": {
            "made": others * len(compared),
            "models": others,
            "figures": len(compared),
            "correction": f"Bonferroni over the {others} models that are compared with {comparison.every[0].name}, "
            "for each figure on its own; none over figures"
            if others
            else "none: a single model",
        },
    }


def _strangeness_equal(comparison: Comparison) -> bool | None:
    """Whether all models have the same AUROC of strangeness; None where there is none."""
    for each in comparison.resampled:
        if each.figure.name == "auroc_shifted_strangeness":
            return bool(abs(each.values - each.values[0]).max() < 1e-12)
    return None


def _model(comparison: Comparison, index: int) -> dict[str, Any]:
    subject, answers, time = comparison.subjects[index], comparison.every[index], comparison.times[index]
    accepted, wrong = int(answers.accepted.sum()), int((answers.accepted * answers.loss).sum())
    certificate = answers.chosen.certificate
    return {
        "name": answers.name,
        "model_digest": subject.contract.model_digest,
        "samplers": len(subject.contract.samplers),
        "dropout_sites": len(subject.contract.sites),
        "score": answers.chosen.score,
        "certified": certificate is not None,
        "accept": answers.why,
        "accepted": {
            "cases": len(answers.accepted),
            "accepted": accepted,
            "wrong": wrong,
            "error": exact_share(wrong, accepted),
        },
        "errors": {"wrong": int(answers.loss.sum()), "right": int((answers.loss == 0).sum())},
        "samples": {
            "mean": float(answers.samples.mean()),
            "median": _median(answers.samples.tolist()),
            "full": answers.full_samples,
        },
        "milliseconds": asdict(time),
        "training": asdict(subject.training) if subject.training else None,
        "figures": {each.figure.name: asdict(each.estimate(index)) for each in comparison.resampled},
    }


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2.0


def sentences(differences: Sequence[dict[str, Any]]) -> list[tuple[str, list[str], list[str]]]:
    """Of each figure: its name, what is shown, and the models for which nothing is."""
    return [
        (name, [each["words"] for each in of if each["shown"]], [each["model"] for each in of if not each["shown"]])
        for name, group in groupby(differences, key=lambda each: str(each["figure"]))
        for of in [list(group)]
    ]


def render(comparison: Comparison, told: dict[str, Any]) -> str:
    """The page; `told` is the document."""
    segmentation = comparison.subjects[0].contract.task is Task.SEGMENTATION
    aurc = next(each for each in comparison.resampled if each.figure.name == "aurc")
    risk = "risk (1 − Dice)" if segmentation else "risk (share wrong)"
    main = [f for f in comparison.figures if not f.name.startswith(("coverage_", "width_ml_"))]
    per_class = [f for f in comparison.figures if f.name.startswith(("coverage_", "width_ml_"))]
    totals = [f for f in per_class if f.name.endswith("_total")]
    return page.render(
        Path(__file__).with_name("compare.html.jinja"),
        {"figure": show, "short": _short, "pair": _pair},
        told=told,
        columns=[f for f in main if f.name not in _DECISION],
        decision=[f for f in main if f.name in _DECISION] + totals,
        volumes=[f for f in per_class if f not in totals],
        marks=_marks(told),
        sentences=sentences(told["differences"]),
        titles={figure.name: figure.title for figure in comparison.figures},
        plots=list(
            plots(
                comparison.every,
                [aurc.estimate(index) for index in range(len(comparison.every))],
                comparison.times,
                risk,
            )
        ),
    )


_DECISION = ("accepted", "error_among_accepted", "samples")


def _marks(told: dict[str, Any]) -> dict[tuple[str, str], str]:
    """(model, figure) → `better` or `worse` than the first model, only where that is shown."""
    better = {figure["name"]: figure["better"] for figure in told["figures"]}
    return {
        (each["model"], each["figure"]): "better"
        if (each["value"] < 0) == (better[each["figure"]] == "lower")
        else "worse"
        for each in told["differences"]
        if each["shown"]
    }


def show(value: float | None, percent: bool = False) -> str:
    """A figure as tables give it: three digits."""
    if value is None:
        return "–"
    return f"{100.0 * value:.1f} %" if percent else _short(value)


def _short(value: float | None) -> str:
    if value is None:
        return "–"
    text = f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return text.replace("-", "−")


def _pair(interval: dict[str, Any], percent: bool = False) -> str:
    """`low to high`, or nothing."""
    if interval["low"] is None:
        return ""
    low, high = (show(interval[end], percent) for end in ("low", "high"))
    return f"{low.removesuffix(' %') if percent else low} to {high}"
