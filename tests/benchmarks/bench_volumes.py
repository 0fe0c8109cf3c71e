"""Volumes with error bars on hippocampi, after Eaton-Rosen et al. 2018: calibrated, and under artificial noise.

    python -m tests.benchmarks.bench_volumes [--json FILE] [--plot FILE]

The published hippocampus model, T = 20 from the test split as it is and under Rician noise. For each nominal
level: the share of true total volumes inside the samples' own interval, and inside the one that calibration cases
widened (split conformal); and what the policy does with the noisy images, since an interval is a promise only for what
is accepted.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
from equipoise_core.case import Case, Model
from equipoise_core.decision import Route
from equipoise_core.loading import load_model
from equipoise_core.sampling import assess
from equipoise_core.volume import volume_of_samples, voxel_volume, widened
from equipoise_export.calibration.conformal import interval_widening
from equipoise_export.calibration.corruptions import rician
from equipoise_export.graph.session import published_samplers
from equipoise_lab.reference.build import spacing_of
from equipoise_lab.reference.data import REPOSITORY, load, reference_split
from equipoise_lab.reference.specs import HIPPOCAMPUS
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
NOISE = (0.0, 0.1, 0.2, 0.4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, default=REPOSITORY / "build" / "volumes.png")
    options = parser.parse_args()
    repository = REPOSITORY / "model_repository"
    published = load_model(repository / "hippocampus" / "1")
    samplers, _ = published_samplers(repository, published.contract)
    asked = Model(published.contract, None, "", published.code_digest)
    spacing = spacing_of(HIPPOCAMPUS)
    assert spacing is not None
    data = load("hippocampus")
    split = reference_split("hippocampus", data.ids)

    def volumes(ids, level: float, what: str):
        """`[n, T]` sampled and `[n]` true total volumes in mL, and the routes under the published policy."""
        cases, random = data.select(ids), np.random.default_rng(0)
        sampled, true, routes = [], [], []
        for image, truth in track(
            list(zip(cases.images, cases.targets, strict=True)), what, console=Console(stderr=True)
        ):
            given = Case(rician(image, level, random) if level else image, spacing=spacing)
            answer = assess(asked, given, samplers)
            millilitres = answer.moments.volumes * voxel_volume(spacing)
            sampled.append(millilitres[:, list(published.contract.foreground)].sum(axis=1))
            true.append((truth > 0).sum() * voxel_volume(spacing))
            routes.append(replace(answer, model=published).decision.route)
        return np.array(sampled), np.array(true), routes

    def intervals(sampled, level: float):
        rows = [volume_of_samples(column, level, 0.0) for column in sampled]
        return np.array([row.low for row in rows]), np.array([row.high for row in rows])

    calibration, truth, _ = volumes(split.calibration, 0.0, "calibration cases")
    widening = {level: interval_widening(*intervals(calibration, level), truth, level) for level in LEVELS}
    report = []
    for noise in NOISE:
        sampled, true, routes = volumes(split.test, noise, f"noise {noise:g}")
        accepted = np.array([route is Route.ACCEPT for route in routes])
        for level in LEVELS:
            low, high = intervals(sampled, level)
            inside = (low <= true) & (true <= high)
            mean = sampled.mean(axis=1)
            ends = [widened(*each, widening[level]) for each in zip(mean, low, high, strict=True)]
            low_end, high_end = np.array(ends).T
            covered = (low_end <= true) & (true <= high_end)
            report.append(
                {
                    "noise": noise,
                    "level": level,
                    "samples_own": float(inside.mean()),
                    "calibrated": float(covered.mean()),
                    "calibrated_accepted": float(covered[accepted].mean()) if accepted.any() else None,
                    "accepted": int(accepted.sum()),
                    "cases": len(true),
                    "width_ml": float((high_end - low_end).mean()),
                    "own_width_ml": float((high - low).mean()),
                    "mean_error_ml": float((mean - true).mean()),
                }
            )
    shown = Table("noise", "level", "samples' own", "calibrated", "width, mL", "accepted", "calibrated, accepted only")
    for row in report:
        only = row["calibrated_accepted"]
        shown.add_row(
            f"{row['noise']:g}", f"{row['level']:.0%}", f"{row['samples_own']:.1%}", f"{row['calibrated']:.1%}",
            f"{row['width_ml']:.2f}", f"{row['accepted']} of {row['cases']}", "–" if only is None else f"{only:.1%}",
        )  # fmt: skip
    Console().print(shown)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _plot(report, options.plot)


def _plot(report, path: Path) -> None:
    figure = Figure(figsize=(5.2, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0.45, 1], [0.45, 1], color="#9fb3c4", linestyle=":")
    for noise, colour, marker in zip(NOISE, ("#0072b2", "#009e73", "#e69f00", "#d55e00"), "os^D", strict=True):
        rows = [row for row in report if row["noise"] == noise]
        levels = [row["level"] for row in rows]
        label = f"noise {noise:g}" if noise else "as they are"
        axes.plot(levels, [row["calibrated"] for row in rows], color=colour, marker=marker, label=label)
        axes.plot(levels, [row["samples_own"] for row in rows], color=colour, marker=marker, alpha=0.35, linestyle="--")
    axes.set(xlabel="nominal level", ylabel="share of true volumes inside", ylim=(0, 1.02))
    axes.legend(frameon=False, title="calibrated (dashed: samples' own)")
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context():
        figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
