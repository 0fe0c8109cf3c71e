"""The result of a comparison: as one JSON object, and as a page made from that object and the plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import numpy as np
from equipoise_core.contract import Task
from equipoise_export import page
from equipoise_export.calibration.choose import Goals
from equipoise_export.calibration.figures import exact_share
from equipoise_export.calibration.resample import LEVEL

from .bootstrap import Difference, Resampled
from .case_sets import CaseSets
from .figures import Figure, Section
from .plots import plots
from .results import ComparedModel, Results
from .timing import IMAGES, ROUNDS, Milliseconds

FORMAT = "equipoise-comparison/1"


@dataclass(frozen=True)
class Comparison:
    """All that was measured."""

    sets: CaseSets
    goals: Goals
    models: Sequence[ComparedModel]
    every: Sequence[Results]
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
    first, sets, goals = comparison.models[0].contract, comparison.sets, comparison.goals
    others, compared = len(comparison.every) - 1, [f for f in comparison.figures if f.better]
    ood_distance = [e.values for e in comparison.resampled if e.figure.name == "auroc_shifted_ood_distance"]
    return {
        "format": FORMAT,
        "data": sets.title,
        "shift": sets.shift or None,
        "task": first.task.value,
        "classes": list(first.classes),
        "loss": goals.loss,
        "alpha": goals.alpha,
        "delta": goals.delta,
        "volume_level": goals.level,
        "cases": {
            name: {"cases": len(cases), "patients": len({case.patient for case in cases})}
            for name, cases in sets.parts.items()
        },
        "wrong_test_cases": {each.name: int(each.loss.sum()) for each in comparison.every},
        "bootstrap": {
            "level": LEVEL,
            "repetitions": comparison.repetitions,
            "seed": comparison.seed,
            "resampled": "patients, the same resamples for all models",
            "interval": "percentile",
        },
        "timing": {"images": min(IMAGES, len(sets.test)), "rounds": ROUNDS},
        "figures": [
            {key: getattr(figure, key) for key in ("name", "title", "meaning", "better", "percent")}
            for figure in comparison.figures
        ],
        "ood_distance_equal": bool(np.ptp(ood_distance) < 1e-12) if ood_distance else None,
        "models": [_model(comparison, index) for index in range(len(comparison.every))],
        "differences": [
            {
                **{key: getattr(each, key) for key in ("model", "to", "figure")},
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


def _model(comparison: Comparison, index: int) -> dict[str, Any]:
    model, results, time = comparison.models[index], comparison.every[index], comparison.times[index]
    accepted, wrong = int(results.accepted.sum()), int((results.accepted * results.loss).sum())
    certificate = results.chosen.certificate
    return {
        "name": results.name,
        "model_digest": model.contract.model_digest,
        "samplers": len(model.contract.samplers),
        "dropout_sites": len(model.contract.sites),
        "score": results.chosen.score,
        "certified": certificate is not None,
        "accept": results.chosen.why,
        "accepted": {
            "cases": len(results.accepted),
            "accepted": accepted,
            "wrong": wrong,
            "error": exact_share(wrong, accepted),
        },
        "errors": {"wrong": int(results.loss.sum()), "right": int((results.loss == 0).sum())},
        "samples": {
            "mean": float(results.samples.mean()),
            "median": float(np.median(results.samples)),
            "full": results.full_samples,
        },
        "milliseconds": asdict(time),
        "training": asdict(model.training) if model.training else None,
        "figures": {each.figure.name: asdict(each.estimate(index)) for each in comparison.resampled},
    }


def sentences(differences: Sequence[dict[str, Any]]) -> list[tuple[str, list[str], list[str]]]:
    """Of each figure: its name, what is shown, and the models for which nothing is."""
    return [
        (name, [each["words"] for each in of if each["shown"]], [each["model"] for each in of if not each["shown"]])
        for name, group in groupby(differences, key=lambda each: str(each["figure"]))
        for of in [list(group)]
    ]


def render(comparison: Comparison, outcome: dict[str, Any]) -> str:
    """The page; `outcome` is the document."""
    segmentation = comparison.models[0].contract.task is Task.SEGMENTATION
    aurc = next(each for each in comparison.resampled if each.figure.name == "aurc")
    areas = [aurc.estimate(index) for index in range(len(comparison.every))]
    risk = "risk (1 − Dice)" if segmentation else "risk (share wrong)"
    return page.render(
        Path(__file__).with_name("compare.html.jinja"),
        {"figure": show, "short": show, "pair": _pair},
        outcome=outcome,
        **{section: [f for f in comparison.figures if f.section == section] for section in get_args(Section)},
        marks=_marks(outcome),
        sentences=sentences(outcome["differences"]),
        titles={figure.name: figure.title for figure in comparison.figures},
        plots=list(plots(comparison.every, areas, comparison.times, risk)),
    )


def _marks(outcome: dict[str, Any]) -> dict[tuple[str, str], str]:
    """(model, figure) → `better` or `worse` than the first model, only where that is shown."""
    lower = {figure["name"] for figure in outcome["figures"] if figure["better"] == "lower"}
    shown = [each for each in outcome["differences"] if each["shown"]]
    return {
        (each["model"], each["figure"]): "better" if (each["value"] < 0) == (each["figure"] in lower) else "worse"
        for each in shown
    }


def show(value: float | None, percent: bool = False) -> str:
    """A figure as tables give it: three digits."""
    if value is None:
        return "–"
    if percent:
        return f"{100.0 * value:.1f} %"
    text = f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return text.replace("-", "−")


def _pair(interval: dict[str, Any], percent: bool = False) -> str:
    """`low to high`, or nothing."""
    if interval["low"] is None:
        return ""
    low, high = (show(interval[end], percent) for end in ("low", "high"))
    return f"{low.removesuffix(' %') if percent else low} to {high}"
