"""What the committed policies do on cases that no part of them has seen: printed figures are the claims.

    python -m tests.benchmarks.bench_decisions [hippocampus pneumonia nuclei] [--cases 20] [--threads 2] [--json F]

Every case runs through `equipoise_core.assess` with the published policy: masks, stages, bounds, route. Test
splits are used for nothing else. Exits with 1 where a claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "export"), str(ROOT / "model_repository" / "hippocampus" / "1")]

import numpy as np  # noqa: E402
from equipoise_core.assessment import Assessment  # noqa: E402
from equipoise_core.case import Case, Model  # noqa: E402
from equipoise_core.decision import Route  # noqa: E402
from equipoise_core.loading import load_model  # noqa: E402
from equipoise_core.sampling import assess  # noqa: E402
from equipoise_core.statistics import input_statistics  # noqa: E402
from equipoise_core.volume import voxel_volume  # noqa: E402
from equipoise_export.calibration import metrics  # noqa: E402
from equipoise_export.calibration.cases import dice_per_class, true_region  # noqa: E402
from equipoise_export.calibration.conformal import coverage_band  # noqa: E402
from equipoise_export.calibration.corruptions import blurred, gaussian, ghosted, rician  # noqa: E402
from equipoise_export.graph.session import OnnxSampler, published_samplers  # noqa: E402
from equipoise_lab.reference.build import truth_of  # noqa: E402
from equipoise_lab.reference.data import Dataset, load, load_shifted_nuclei, reference_split  # noqa: E402
from equipoise_lab.reference.specs import REFERENCES  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from scipy.stats import binomtest  # noqa: E402

from tests.support import corruptions  # noqa: E402

REPOSITORY = ROOT / "model_repository"
Pair = tuple[NDArray[np.float32], NDArray[np.uint8]]


@dataclass(frozen=True)
class Claim:
    """A figure and what it has to be."""

    what: str
    figure: str
    bound: str
    holds: bool


@dataclass(frozen=True)
class Subject:
    """A published model with its policy, and cases that neither weights nor policy have seen."""

    name: str
    model: Model
    samplers: list[OnnxSampler]
    first_pass: OnnxSampler | None
    test: Dataset
    spacing: tuple[float, ...] | None

    def assess(self, image: NDArray[np.float32]) -> Assessment:
        return assess(self.model, Case(image, spacing=self.spacing), self.samplers, first_pass=self.first_pass)

    @property
    def pairs(self) -> list[Pair]:
        return list(zip(self.test.images, self.test.targets, strict=True))


def subject(name: str, cases: int | None, threads: int) -> Subject:
    data = load(name)
    ids = reference_split(name, data.ids).test
    model = load_model(REPOSITORY / name / "1")
    return Subject(
        name,
        model,
        *published_samplers(REPOSITORY, model.contract, threads),
        data.select(ids[:cases]),
        (1.0, 1.0, 1.0) if name == "hippocampus" else None,
    )


@dataclass(frozen=True)
class Row:
    """What became of one population of cases; Dice is the mean over classes."""

    what: str
    cases: int
    accepted: int
    rejected: int
    lowest_dice: float
    lowest_accepted_dice: float
    median_samples: float


def row(subject: Subject, what: str, pairs: Sequence[Pair]) -> Row:
    reference = REFERENCES[subject.name]
    routes, dice, samples = [], [], []
    for image, truth in pairs:
        done = subject.assess(image)
        routes.append(done.decision.route)
        samples.append(done.moments.samples)
        dice.append(float(np.mean(list(dice_per_class(done, truth_of(reference, truth)).values()))))
    accepted = [d for d, route in zip(dice, routes, strict=True) if route is Route.ACCEPT]
    found = Row(
        what, len(pairs), len(accepted), routes.count(Route.REJECT), min(dice), min(accepted, default=float("nan")),
        float(np.median(samples)),
    )  # fmt: skip
    print(
        f"  {what:38s} {found.cases:4d} cases {found.accepted:4d} accepted {found.rejected:4d} rejected   "
        f"Dice from {found.lowest_dice:.3f}, of accepted from {found.lowest_accepted_dice:.3f}   "
        f"median samples {found.median_samples:g}",
        flush=True,
    )
    return found


def worse_brains(pairs: Sequence[Pair]) -> Iterator[tuple[str, list[Pair]]]:
    """The hippocampus images, graded from mild to severe."""
    random = np.random.default_rng(0)
    for level in (0.1, 0.3, 0.6, 1.0):
        yield f"Rician noise {level:g} sd", [(rician(i, level, random), t) for i, t in pairs]
    for sigma in (0.5, 1.0, 2.0, 3.0):
        yield f"blur {sigma:g} voxels", [(blurred(i, sigma), t) for i, t in pairs]
    for level in (0.1, 0.3, 0.6, 1.0):
        yield f"ghosting {level:g}", [(ghosted(i, level), t) for i, t in pairs]
    for axis, name in enumerate(("left-right", "front-back", "head-feet")):
        yield f"flipped {name}", [corruptions.flip(i, t, axis) for i, t in pairs]
    for factor in (0.5, 0.7, 0.85, 1.2, 1.5, 2.0):
        yield f"sizes {factor:g} times what is claimed", [corruptions.rescale(i, t, factor) for i, t in pairs]


def volumes(subject: Subject) -> Iterator[Claim]:
    """Whether the volume intervals cover as often as they say, within the beta-binomial band."""
    contract, policy = subject.model.contract, subject.model.in_force
    assert subject.spacing is not None and policy is not None and policy.volume is not None
    done = [(subject.assess(image), truth) for image, truth in subject.pairs]
    band = coverage_band(policy.volume.cases, len(done), policy.volume.level)
    scale = voxel_volume(subject.spacing)
    for name in (*(contract.classes[k] for k in contract.foreground), "total"):
        inside = [
            a.volumes[name].low <= true_region(contract, truth, name).sum() * scale <= a.volumes[name].high
            for a, truth in done
        ]
        share = float(np.mean(inside))
        yield Claim(
            f"volume of {name}: true one inside the {policy.volume.level:.0%} interval",
            f"{share:.3f} of {len(done)}",
            f"{band[0]:.3f} to {band[1]:.3f}",
            band[0] <= share <= band[1],
        )


def corrupted(subject: Subject) -> Iterator[Claim]:
    """What is accepted of images that get worse and worse."""
    rows = [row(subject, "as they are", subject.pairs)]
    rows += [row(subject, what, pairs) for what, pairs in worse_brains(subject.pairs)]
    accepted = sum(r.accepted for r in rows)
    lowest = float(np.nanmin([r.lowest_accepted_dice for r in rows]))
    yield Claim(f"lowest Dice of {accepted} accepted cases, all corruptions", f"{lowest:.3f}", "≥ 0.60", lowest >= 0.60)


def calibration(subject: Subject) -> Iterator[Claim]:
    """Calibration error on the exchangeable test split."""
    yield from _calibration(subject, "", lambda image: image)


def shifted(subject: Subject) -> Iterator[Claim]:
    """The same on images that another machine might have made: stated, not claimed."""
    yield from _calibration(subject, "shifted by blur, ", lambda image: blurred(image, 0.7))
    yield from _calibration(subject, "shifted by contrast, ", lambda image: 255.0 * (image / 255.0) ** 2)


def _calibration(subject: Subject, what: str, change: Callable[[Any], Any]) -> Iterator[Claim]:
    done = [subject.assess(change(image)) for image in subject.test.images]
    truth = np.array([int(target) for target in subject.test.targets])
    raw, calibrated = (np.stack([getattr(of(a), name) for a in done]) for of, name in (
        (lambda a: a.uncertainty, "mean"), (lambda a: a, "calibrated"),
    ))  # fmt: skip
    before, after = (metrics.expected_calibration_error(p, truth) for p in (raw, calibrated))
    floor = metrics.floor(calibrated, metrics.expected_calibration_error)[1]
    limit = max(before / 2, floor)
    routes = [a.decision.route for a in done]
    wrong = np.array([bool((a.uncertainty.labels != t).any()) for a, t in zip(done, truth, strict=True)])
    accepted = np.array([route is Route.ACCEPT for route in routes])
    yield Claim(
        f"{what}ECE after recalibration ({len(done)} cases; before {before:.4f}, floor's 95 % {floor:.4f})",
        f"{after:.4f}",
        "stated, not claimed" if what else f"≤ {limit:.4f}",
        bool(what) or after <= limit,
    )
    yield Claim(
        f"{what}wrong among accepted",
        f"{int((wrong & accepted).sum())} of {int(accepted.sum())} ({interval(wrong & accepted, accepted)})",
        "stated, not claimed" if what else "≤ α, whose certificate may fail with δ",
        True,
    )


def stages(subject: Subject) -> Iterator[Claim]:
    """Samples used, and routes against those at full T with the same masks."""
    used, same = [], []
    policy, full_t = subject.model.policy, subject.model.samples
    assert policy is not None
    last = replace(subject.model, policy=replace(policy, stages=policy.stages[-1:]))
    for image in subject.test.images:
        served = subject.assess(image)
        used.append(served.samples)
        if served.samples < full_t:
            full = assess(last, Case(image, spacing=subject.spacing), subject.samplers)
            same.append(full.decision.route is served.decision.route)
    agree = np.array(same, dtype=bool)
    yield Claim(f"median samples of {len(used)} cases", f"{np.median(used):g}", f"≤ {full_t // 2}",
                float(np.median(used)) <= full_t / 2)  # fmt: skip
    yield Claim(
        "route as at full T, of those decided before",
        f"{int(agree.sum())} of {len(agree)} ({interval(agree, np.ones_like(agree))})",
        "stated, not claimed",
        True,
    )


def interval(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> str:
    """Clopper-Pearson, 95 %."""
    if not whole.any():
        return "none"
    found = binomtest(int(part.sum()), int(whole.sum())).proportion_ci(0.95)
    return f"95 %: {found.low:.2%} to {found.high:.2%}"


def tissue(subject: Subject) -> Iterator[Claim]:
    """Out of distribution, end to end: H&E as it is, and matched to fluorescence in brightness, contrast and more."""
    random = np.random.default_rng(0)
    shifted = load_shifted_nuclei()
    likes = [subject.test.images[k] for k in random.integers(len(subject.test), size=len(shifted))]
    own = np.array([distance(subject, image) for image in subject.test.images])
    plain = row(subject, "fluorescence, as it is", subject.pairs)
    yield Claim("fluorescence, accepted (so that the rest means something)", f"{plain.accepted} of {plain.cases}",
                "more than half", plain.accepted > plain.cases / 2)  # fmt: skip
    rows = []
    for what, change in STAINED.items():
        images = [change(image, like) for image, like in zip(shifted.images, likes, strict=True)]
        rows.append(row(subject, what, list(zip(images, shifted.targets, strict=True))))
        distances = np.r_[own, [distance(subject, image) for image in images]]
        foreign = np.arange(len(distances)) >= len(own)
        auroc = metrics.separation(distances, ~foreign, foreign)
        yield Claim(f"{what}: AUROC of ood_distance", f"{auroc:.4f}", "≥ 0.95", auroc >= 0.95)
    yield from _accepted(rows)


def worse_cells(subject: Subject) -> Iterator[Claim]:
    """Graded corruptions of fluorescence images, end to end."""
    random = np.random.default_rng(0)
    rows = []
    for level in (0.25, 0.5, 1.0, 2.0):
        noisy = [(gaussian(i, level, random), t) for i, t in subject.pairs]
        rows.append(row(subject, f"noise {level:g} sd", noisy))
    for sigma in (1.0, 2.0, 4.0):
        rows.append(row(subject, f"blur {sigma:g} px", [(blurred(i, sigma), t) for i, t in subject.pairs]))
    yield from _accepted(rows)


def _accepted(rows: Sequence[Row]) -> Iterator[Claim]:
    """At most 5 % of all, and of each kind what it is."""
    for r in rows:
        yield Claim(f"{r.what}: accepted", f"{r.accepted} of {r.cases}, Dice from {r.lowest_accepted_dice:.3f}",
                    "stated", True)  # fmt: skip
    accepted, cases = sum(r.accepted for r in rows), sum(r.cases for r in rows)
    yield Claim("all of these: accepted end to end", f"{accepted} of {cases} ({accepted / cases:.1%})", "≤ 5 %",
                accepted <= 0.05 * cases)  # fmt: skip


def distance(subject: Subject, image: NDArray[np.float32]) -> float:
    """The policy's ood_distance of an image."""
    policy = subject.model.in_force
    assert policy is not None and policy.ood_distance is not None
    return policy.ood_distance.distance(input_statistics(subject.model.contract.preprocessing.normalise(image)))


STAINED: dict[str, Callable[[Any, Any], Any]] = {
    "H&E": lambda image, _: image,
    "H&E matched in brightness and contrast": corruptions.matched_moments,
    "H&E matched in histogram": corruptions.matched_histogram,
    "H&E inverted and matched": lambda image, like: corruptions.matched_moments(-image, like),
    "H&E inverted, matched in histogram": lambda image, like: corruptions.matched_histogram(-image, like),
}

CLAIMS: dict[str, tuple[Callable[[Subject], Iterator[Claim]], ...]] = {
    "hippocampus": (volumes, stages, corrupted),
    "pneumonia": (calibration, shifted, stages),
    "nuclei": (tissue, worse_cells, stages),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(CLAIMS), help="which models")
    parser.add_argument("--cases", type=int, help="only so many test cases of each")
    parser.add_argument("--threads", type=int, default=0, help="of ONNX Runtime; 0: all cores")
    parser.add_argument("--json", type=Path, help="write the claims here")
    options = parser.parse_args()
    claims: dict[str, list[Claim]] = {}
    for name in options.names:
        print(name, flush=True)
        asked = subject(name, options.cases, options.threads)
        claims[name] = []
        for claim in (claim for make in CLAIMS[name] for claim in make(asked)):
            verdict = "holds" if claim.holds else "DOES NOT HOLD"
            print(f"  {claim.what}: {claim.figure}  [{claim.bound}]  {verdict}", flush=True)
            claims[name].append(claim)
    if options.json:
        document = {name: [asdict(claim) for claim in found] for name, found in claims.items()}
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if all(claim.holds for found in claims.values() for claim in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
