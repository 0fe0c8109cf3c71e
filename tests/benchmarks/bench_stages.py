"""What a decision costs by different lists of stages: share accepted, accepted error, passes and sampler time per case.

    python -m tests.benchmarks.bench_stages [hippocampus nuclei pneumonia] [--students FOLDER] [--cases N] [--json F]

Every list is calibrated on the calibration split at the reference's own α and δ, and judged on the test split. `T = 20`
is full T alone, `samples` stops early among numbers of samples, `first pass` is the network without dropout and then
samples, `student` the same with a trained single-pass network (FOLDER: what the method `cascade` wrote). Sampler time
is of the runs that the case goes through, each as long as the median of interleaved runs on an image of the split.
Exits with 1 where no list with a first pass takes a third of the time of T = 20.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from equipoise_core.case import Model
from equipoise_core.loading import load_model
from equipoise_core.statistics import input_statistics
from equipoise_export.calibration.cases import Labelled, Measured, measure
from equipoise_export.calibration.choose import ChosenPolicy, Costs, choose_policy, one_each
from equipoise_export.calibration.costs import measure_costs
from equipoise_export.calibration.figures import exact_share
from equipoise_export.graph.session import published_samplers
from equipoise_lab.reference.build import PILOT_CASES, goals, spacing_of, truth_of
from equipoise_lab.reference.data import Dataset, load, reference_split
from equipoise_lab.reference.specs import REFERENCES, Reference

REPOSITORY = Path(__file__).parents[2] / "model_repository"
EARLY = (5, 10)
LISTS = {
    "T = 20": (20,),
    "samples": (*EARLY, 20),
    "first pass": (0, 20),
    "first pass, samples": (0, *EARLY, 20),
}
GOAL = 3.0


@dataclass(frozen=True)
class Row:
    """One list of stages on one data set; times in milliseconds per case."""

    model: str
    stages: str
    certificate: str
    cases: int
    accepted: float
    wrong: int
    error_low: float | None
    error_high: float | None
    passes: float
    milliseconds: float
    faster: float


def rows(name: str, repository: Path, published: str, limit: int | None) -> Iterator[Row]:
    """The lists that the pair `published` has measurements for."""
    reference, data = REFERENCES[name], load(name)
    model = replace(load_model(repository / published / "1"), policy=None)
    parts, typical = measured(reference, data, model, repository, limit)
    (example,) = labelled(reference, data, reference_split(name, data.ids).calibration[:1])
    costs = measure_costs(model, repository, example, (0, *EARLY, 20))
    whole = costs.of((20,), 20)
    for title, stages in LISTS.items():
        chosen = choose_policy(
            model.contract, parts["pilot"], parts["calibration"], goals(reference), typical, stages=stages
        )
        yield row(published, title, chosen, parts["test"], costs, whole)


def labelled(reference: Reference, data: Dataset, ids: Sequence[str]) -> list[Labelled]:
    chosen = data.select(ids)
    return [
        Labelled(each, each, image, truth_of(reference, target), spacing_of(reference))
        for each, image, target in zip(ids, chosen.images, chosen.targets, strict=True)
    ]


def measured(
    reference: Reference, data: Dataset, model: Model, repository: Path, limit: int | None
) -> tuple[dict[str, list[Measured]], list[dict[str, float]]]:
    """Pilot, calibration and test cases at every stage, and the statistics of all training images."""
    split = reference_split(reference.name, data.ids)
    samplers, first_pass = published_samplers(repository, model.contract)
    ids = {
        "pilot": split.train[: PILOT_CASES[model.contract.task]],
        "calibration": split.calibration,
        "test": split.test,
    }
    dice = reference.acceptable_dice or 0.0
    parts = {}
    for part, names in ids.items():
        print(f"{model.contract.name}: {part}", file=sys.stderr)
        cases = labelled(reference, data, names[:limit])
        parts[part] = [measure(model, case, samplers, dice, (0, *EARLY, 20), first_pass) for case in cases]
    normalise = model.contract.preprocessing.normalise
    return parts, [input_statistics(normalise(image)) for image in data.select(split.train).images]


def row(name: str, title: str, chosen: ChosenPolicy, test: Sequence[Measured], costs: Costs, whole: float) -> Row:
    stages = [stage.samples for stage in chosen.policy.stages]
    served = [chosen.served(case) for case in one_each(test)]
    accepted = [each for each in served if each.route.value == "accept"]
    wrong = round(sum(each.step.loss for each in accepted))
    error = exact_share(wrong, len(accepted))
    seconds = float(np.mean([costs.of(stages, each.step.samples) for each in served]))
    guarantee = chosen.policy.guarantee
    return Row(
        name,
        title,
        "none" if guarantee is None else f"≤ {guarantee.alpha:g}, confidence {1 - guarantee.delta:g}",
        len(served),
        len(accepted) / len(served),
        wrong,
        error["low"],
        error["high"],
        float(np.mean([each.step.samples + (stages[0] == 0) for each in served])),
        1000 * seconds,
        whole / seconds,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Cost of a decision by its stages.")
    parser.add_argument("names", nargs="*", default=list(REFERENCES))
    parser.add_argument("--students", type=Path, help="repository with NAME_cascade pairs")
    parser.add_argument("--cases", type=int, help="of each part of the split, at most")
    parser.add_argument("--json", type=Path, help="also write the rows as JSON")
    given = parser.parse_args()
    found: list[Row] = []
    for name in given.names:
        some = list(rows(name, REPOSITORY, name, given.cases))
        if given.students is not None and (given.students / f"{name}_cascade").exists():
            student = rows(name, given.students, f"{name}_cascade", given.cases)
            some += [replace(each, stages=f"student{each.stages[10:]}") for each in student if "first" in each.stages]
        for each in some:
            print(
                f"{each.model:22} {each.stages:20} accepted {each.accepted:6.1%}, wrong {each.wrong}, "
                f"passes {each.passes:5.1f}, {each.milliseconds:7.2f} ms, {each.faster:4.1f} x"
            )
        found += some
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n", encoding="utf-8")
    best = {
        name: max((r.faster for r in found if r.model == name and "first" in r.stages), default=0.0)
        for name in given.names
    }
    return int(min(best.values()) < GOAL)


if __name__ == "__main__":
    sys.exit(main())
