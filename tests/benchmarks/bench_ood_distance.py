"""Which number tells unsuitable images apart? AUROC of several candidates on nuclei against H&E tissue and corruptions.

    python tests/benchmarks/bench_ood_distance.py [--repository REPO] [--samples 8] [--json F]

The H&E crops are asked as they are and matched: in brightness and contrast to a fluorescence image, in the whole
histogram, and the same turned dark-for-bright first, which makes nuclei bright as in fluorescence.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "export"), str(ROOT / "model_repository" / "hippocampus" / "1")]

import numpy as np  # noqa: E402
import typer  # noqa: E402
from equipoise_core.case import Case  # noqa: E402
from equipoise_core.loading import load_model  # noqa: E402
from equipoise_core.sampling import assess  # noqa: E402
from equipoise_core.statistics import simple_statistics  # noqa: E402
from equipoise_core.texture import texture_statistics  # noqa: E402
from equipoise_export.calibration.conformal import upper_limit  # noqa: E402
from equipoise_export.calibration.corruptions import Image, blurred, gaussian  # noqa: E402
from equipoise_export.calibration.ood_distance import fit_ood_distance  # noqa: E402
from equipoise_export.graph.session import OnnxSampler  # noqa: E402
from equipoise_lab.reference.data import load, load_shifted_nuclei, reference_split  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402
from rich.table import Table  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402

from tests.support.corruptions import matched_histogram, matched_moments  # noqa: E402

Numbers = dict[str, float]

NAME = "nuclei"
FALSE_ALARMS = 0.05


def auroc(low: NDArray[np.float64], high: NDArray[np.float64]) -> float:
    """The chance that a number of `high` exceeds one of `low`, ties half."""
    return float(roc_auc_score(np.r_[np.zeros(len(low)), np.ones(len(high))], np.r_[low, high]))


def populations(typical: Sequence[Image], strange: Sequence[Image], seed: int = 0) -> dict[str, list[Image]]:
    """Out-of-distribution images by name: H&E raw and matched, and graded corruptions of typical images."""
    random = np.random.default_rng(seed)
    likes = [typical[i] for i in random.integers(len(typical), size=len(strange))]

    def each(change: Callable[[Image, Image], Image]) -> list[Image]:
        return [change(image, like) for image, like in zip(strange, likes, strict=True)]

    found = {
        "H&E": list(strange),
        "H&E, moments matched": each(matched_moments),
        "H&E, histogram matched": each(matched_histogram),
        "H&E inverted, moments matched": each(lambda image, like: matched_moments(-image, like)),
        "H&E inverted, histogram matched": each(lambda image, like: matched_histogram(-image, like)),
    }
    for level in (0.25, 0.5, 1.0, 2.0):
        found[f"noise {level:g} sd"] = [gaussian(image, level, random) for image in typical]
    for sigma in (1.0, 2.0, 4.0):
        found[f"blur {sigma:g} px"] = [blurred(image, sigma) for image in typical]
    return found


def measure(repository: Path, samples: int, seed: int = 0) -> dict[str, Any]:
    """AUROC and share found at `FALSE_ALARMS`, per population and candidate."""
    model = load_model(repository / NAME / "1")
    samplers = [OnnxSampler(repository / f"{NAME}_sampler" / "1" / "model.onnx")] if samples else []
    normalise = model.contract.preprocessing.normalise
    data = load(NAME)
    split = reference_split(NAME, data.ids)

    def statistics(image: Image) -> tuple[Numbers, Numbers]:
        normalised = normalise(image)
        return simple_statistics(normalised), texture_statistics(normalised)

    training = [statistics(image) for image in data.select(split.train).images]
    simple = fit_ood_distance([a for a, _ in training])
    texture = fit_ood_distance([b for _, b in training])
    both = fit_ood_distance([{**a, **b} for a, b in training])

    def candidates(image: Image) -> Numbers:
        a, b = statistics(image)
        numbers = {
            "distance of simple statistics": simple.distance(a),
            "distance of texture": texture.distance(b),
            "distance of both": both.distance({**a, **b}),
        }
        if samplers:
            numbers |= assess(model, Case(image, samples=samples), samplers).scores
        return numbers

    def table(images: Sequence[Image], what: str) -> dict[str, NDArray[np.float64]]:
        rows = [candidates(image) for image in track(images, what, console=Console(stderr=True))]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    calibration = table(data.select(split.calibration).images, "calibration")
    test_images = data.select(split.test).images
    test = table(test_images, "test")
    report: dict[str, Any] = {"false_alarms_wanted": FALSE_ALARMS, "samples": samples, "populations": {}}
    limits = {name: upper_limit(column, 1.0 - FALSE_ALARMS) for name, column in calibration.items()}
    report["false_alarms_seen"] = {name: float((test[name] > limit).mean()) for name, limit in limits.items()}
    for what, images in populations(test_images, load_shifted_nuclei().images, seed).items():
        found = table(images, what)
        report["populations"][what] = {
            name: {"auroc": auroc(test[name], column), "found": float((column > limits[name]).mean())}
            for name, column in found.items()
        }
    return report


def main(
    repository: Annotated[Path, typer.Option(help="Model repository.")] = ROOT / "model_repository",
    samples: Annotated[int, typer.Option(help="T of the epistemic candidates; 0 leaves them out.")] = 8,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Compare candidates for the out-of-distribution score."""
    report = measure(repository, samples)
    names = list(report["false_alarms_seen"])
    shown = Table("AUROC (found at the limit)", *names)
    shown.add_row("false alarms on test cases", *(f"{report['false_alarms_seen'][name]:.3f}" for name in names))
    for what, figures in report["populations"].items():
        shown.add_row(what, *(f"{figures[name]['auroc']:.3f} ({figures[name]['found']:.2f})" for name in names))
    Console().print(shown)
    if json_file:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
