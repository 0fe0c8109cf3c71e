"""Would masks that balance each other lower the error of the mean? Ratio of its variance over seeds, T = 20.

    python -m tests.benchmarks.bench_masks [pneumonia nuclei] [--images 6] [--seeds 40] [--json F]

Three plans of the same 20 samples, on the published samplers: independent masks (what is served), antithetic pairs (a
unit's random number u and 1 − u; exact for every p), and balanced ones (each unit is dropped in exactly pT samples).
Above 1 a plan is better than independent masks; 2 would be worth twice the samples. "Var" is what the plain formula for
the variance between samples gives under the plan, over what it gives for independent masks: 1 is unbiased.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "export"), str(ROOT / "model_repository" / "hippocampus" / "1")]

import numpy as np  # noqa: E402
from equipoise_core.loading import load_model  # noqa: E402
from equipoise_core.masks import MaskLayout, mask_layout  # noqa: E402
from equipoise_export.graph.session import OnnxSampler  # noqa: E402
from equipoise_lab.reference.data import load, reference_split  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

T = 20
Keep = NDArray[np.bool_]


def independent(layout: MaskLayout, random: np.random.Generator) -> Keep:
    return random.random((T, layout.bits)) >= layout.thresholds / 2**32


def antithetic(layout: MaskLayout, random: np.random.Generator) -> Keep:
    u = random.random((T // 2, layout.bits))
    return np.stack([u, 1.0 - u], axis=1).reshape(T, layout.bits) >= layout.thresholds / 2**32


def balanced(layout: MaskLayout, random: np.random.Generator) -> Keep:
    strata = np.argsort(random.random((T, layout.bits)), axis=0)  # each unit visits each of T strata once
    return (strata + random.random((T, layout.bits))) / T >= layout.thresholds / 2**32


PLANS: dict[str, Callable[[MaskLayout, np.random.Generator], Keep]] = {
    "independent": independent,
    "antithetic": antithetic,
    "balanced": balanced,
}


def measure(name: str, images: int, seeds: int) -> dict[str, tuple[float, float]]:
    """Per plan: mean variance over seeds of the mean probability, and mean of the variance between samples."""
    repository = ROOT / "model_repository"
    contract = load_model(repository / name / "1").contract
    sampler = OnnxSampler(repository / f"{name}_sampler" / "1" / "model.onnx", threads=1)
    data = load(name)
    cases = data.select(reference_split(name, data.ids).calibration[:images]).images
    found = {}
    for plan, draw in PLANS.items():
        random = np.random.default_rng(0)
        errors, spreads = [], []
        for image in cases:
            padded = contract.preprocessing.pad(contract.preprocessing.normalise(image))[None]
            layout = mask_layout(contract, padded.shape[2:])
            means, between = [], []
            for _ in range(seeds):
                masks = np.packbits(draw(layout, random), axis=1, bitorder="little")[None]
                outputs = sampler(padded, masks)
                if "probabilities" in outputs:
                    mean, second = outputs["probabilities"][0].mean(axis=0), (outputs["probabilities"][0] ** 2).mean(0)
                else:
                    mean, second = outputs["sum_p"][0] / T, outputs["sum_p2"][0] / T
                means.append(mean)
                between.append(float((second - mean**2).mean()) * T / (T - 1))
            errors.append(float(np.var(means, axis=0, ddof=1).mean()))
            spreads.append(float(np.mean(between)))
        found[plan] = (float(np.mean(errors)), float(np.mean(spreads)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=["pneumonia", "nuclei"])
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    report: dict[str, dict[str, dict[str, float]]] = {}
    for name in options.names:
        found = measure(name, options.images, options.seeds)
        error, spread = found["independent"]
        report[name] = {plan: {"gain": error / e, "variance": s / spread} for plan, (e, s) in found.items()}
        for plan, (e, s) in found.items():
            print(f"{name:12s} {plan:12s} gain {error / e:5.2f}   Var {s / spread:5.3f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
