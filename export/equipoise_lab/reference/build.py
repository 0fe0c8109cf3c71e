"""Weights → the published reference pairs: compile, prove, calibrate, publish.

python -m equipoise_lab.reference.build                 all three, from the committed weights
python -m equipoise_lab.reference.build --retrain       train them again first
python -m equipoise_lab.reference.build nuclei --into /tmp/repository
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from equipoise_core.assessment import Assessment
from equipoise_core.case import Case, Model
from equipoise_core.contract import Activation, Contract, Task
from equipoise_core.decision import Route
from equipoise_core.loading import load_model
from equipoise_core.policy import Policy
from equipoise_core.sampling import assess
from equipoise_core.stages import FIRST_PASS
from equipoise_core.statistics import input_statistics
from equipoise_core.volume import voxel_volume
from equipoise_export.calibration.calibrate import table_file, write_whole
from equipoise_export.calibration.cases import Labelled, Measured, dice_per_class, is_wrong, measure, true_region
from equipoise_export.calibration.choose import Goals, Method, choose_policy, one_each
from equipoise_export.calibration.table import CaseTable, table_of
from equipoise_export.compile import compile_first_pass, compile_sampler
from equipoise_export.compiled import Compiled
from equipoise_export.graph.session import published_samplers
from equipoise_export.options import Options, Sizes
from equipoise_export.publish.repository import publish_pair
from equipoise_export.publish.triton_config import first_pass_name, sampler_names
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from .data import REPOSITORY, Dataset, load, reference_split
from .specs import REFERENCES, WEIGHTS, Reference
from .train import main as train

LARGEST = {2: 1024, 3: 128}
"""Per spatial rank the largest size of one request: what fits into a few GB with 20 samples."""

SIZE_NAMES = ("X", "Y", "Z")

PILOT_CASES = {Task.SEGMENTATION: 60, Task.CLASSIFICATION: 500}
"""More would take longer and choose no better thresholds."""


def draft_contract(reference: Reference) -> Contract:
    """The contract before the compiler has found the sites. Segmentation takes any size, classification its own."""
    channels, *nominal = reference.input_shape
    segmentation = reference.task == "segmentation"
    return Contract(
        name=reference.name,
        task=Task(reference.task),
        activation=Activation(reference.activation),
        classes=reference.classes,
        channels=channels,
        spatial=SIZE_NAMES[: len(nominal)] if segmentation else tuple(nominal),
        nominal=tuple(nominal),
        maximum=(LARGEST[len(nominal)],) * len(nominal) if segmentation else tuple(nominal),
        preprocessing=reference.preprocessing,
        sites=(),
        spacing=reference.spacing,
        orientation=reference.orientation,
        modalities=reference.modality,
        subject=reference.subject,
    )


def compile_reference(reference: Reference) -> Compiled:
    """The proven sampler of a reference model, from its committed weights."""
    return compile_sampler(
        reference.trained(), draft_contract(reference), _example(reference), Options(sizes=Sizes.DYNAMIC)
    )


def _example(reference: Reference) -> torch.Tensor:
    return torch.randn(2, *reference.input_shape, generator=torch.Generator().manual_seed(0))


def build(reference: Reference, data: Dataset) -> tuple[Compiled, Compiled, Policy, CaseTable, dict[str, Any]]:
    """Sampler, first pass, policy and the numbers of its cases; what it does on the test split."""
    compiled = compile_reference(reference)
    first_pass = compile_first_pass(reference.trained(), compiled, _example(reference))
    with tempfile.TemporaryDirectory() as scratch:
        directory = publish_pair(compiled, Path(scratch), first_pass=first_pass) / "1"
        model = load_model(directory)
        samplers, first = published_samplers(Path(scratch), model.contract)
        policy, table = choose_on_split(model, Path(scratch), reference, data, reference.stages)
        decided = Model(model.contract, policy, "", model.code_digest)
        test = data.select(reference_split(reference.name, data.ids).test)
        assessments = [
            (assess(decided, Case(image, spacing=spacing_of(reference)), samplers, first_pass=first), truth)
            for image, truth in _each(reference, test, "testing")
        ]
    return compiled, first_pass, policy, table, _routes(assessments, reference.acceptable_dice or 0.0)


def spacing_of(reference: Reference) -> tuple[float, ...] | None:
    """Of all its cases, mm."""
    return None if reference.spacing is None else tuple((low + high) / 2 for low, high in reference.spacing)


def choose_on_split(
    model: Model, repository: Path, reference: Reference, data: Dataset, stages: Sequence[int] = ()
) -> tuple[Policy, CaseTable]:
    """The policy of a model for this data set, published without one, chosen on the calibration split, and the
    numbers of its cases for `adapt`.

    Training cases are the pilot: they say where to look, and no guarantee rests on them. Statistics of the input need
    no samples: they are of all training images.

    Args:
        stages: empty: a first pass, where the model has one, and full T.
    """
    split = reference_split(reference.name, data.ids)
    samplers, first_pass = published_samplers(repository, model.contract)
    stages = stages or (*((FIRST_PASS,) if first_pass else ()), model.samples)

    def measured(ids: Sequence[str], what: str) -> list[Measured]:
        cases = data.select(ids)
        return [
            measure(
                model, Labelled(name, name, image, truth, spacing_of(reference)), samplers,
                reference.acceptable_dice or 0.0, stages, first_pass,
            )
            for name, (image, truth) in zip(ids, _each(reference, cases, what), strict=True)
        ]  # fmt: skip

    pilot = measured(split.train[: PILOT_CASES[model.contract.task]], "pilot")
    calibration = measured(split.calibration, "calibrating")
    policy = choose_policy(
        model.contract,
        pilot,
        calibration,
        goals(reference),
        [input_statistics(model.contract.preprocessing.normalise(image)) for image in data.select(split.train).images],
        stages,
    ).policy
    return policy, table_of(policy.digest, goals(reference), reference.acceptable_dice or 0.0, one_each(calibration))


def goals(reference: Reference) -> Goals:
    """What the reference policies guarantee. A classifier's table is small enough to be isotonic; it halves its ECE."""
    if reference.acceptable_dice is None:
        return Goals("wrong label", alpha=0.05, method=Method.ISOTONIC)
    return Goals(f"mean Dice below {reference.acceptable_dice:g}")


def _each(reference: Reference, data: Dataset, what: str) -> Any:
    truths = [truth_of(reference, target) for target in data.targets]
    return track(list(zip(data.images, truths, strict=True)), f"{reference.name}: {what}", console=Console(stderr=True))


def truth_of(reference: Reference, target: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A label of its data as `Labelled.truth`: a structure that stands alone has an axis of its own."""
    return target[None] if reference.activation == "sigmoid" else target


def _routes(assessments: list[tuple[Assessment, Any]], acceptable_dice: float) -> dict[str, Any]:
    """What the policy does with the test split."""
    routes = [assessment.decision.route for assessment, _ in assessments]
    wrong = [is_wrong(assessment, truth, acceptable_dice) for assessment, truth in assessments]
    report: dict[str, Any] = {
        "cases": len(routes),
        **{route.value: routes.count(route) for route in Route},
        "median_samples": float(np.median([assessment.samples for assessment, _ in assessments])),
        "decided_by_first_pass": sum(assessment.first_pass for assessment, _ in assessments),
        "wrong": sum(wrong),
        "wrong_among_accepted": sum(w for w, r in zip(wrong, routes, strict=True) if r is Route.ACCEPT),
    }
    if assessments[0][0].model.contract.task is Task.SEGMENTATION:
        dice = [dice_per_class(assessment, truth) for assessment, truth in assessments]
        report["dice"] = {name: sum(d[name] for d in dice) / len(dice) for name in dice[0]}
    if assessments[0][0].case.spacing is not None:
        contract = assessments[0][0].model.contract
        names = [*(contract.classes[k] for k in contract.foreground), "total"]
        report["volume_interval_coverage"] = {
            name: sum(_covered(a, truth, name) for a, truth in assessments) / len(assessments) for name in names
        }
    return report


def _covered(assessment: Assessment, truth: Any, name: str) -> bool:
    volume = assessment.volumes[name]
    assert assessment.case.spacing is not None
    true = true_region(assessment.model.contract, truth, name).sum() * voxel_volume(assessment.case.spacing)
    return bool(volume.low <= true <= volume.high)


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Which models; all by default.")] = None,
    into: Annotated[Path, typer.Option(help="Model repository to publish into.")] = REPOSITORY / "model_repository",
    retrain: Annotated[bool, typer.Option(help="Train the weights again first (about 20 minutes on 2 cores).")] = False,
) -> None:
    """Rebuild and republish the reference models."""
    console = Console()
    for name in names or list(REFERENCES):
        reference = REFERENCES[name]
        data = load(name)
        if retrain:
            train([name])
        compiled, first_pass, policy, table, routes = build(reference, data)
        real_copy = into / "hippocampus" / "1"
        publish_pair(
            compiled,
            into,
            policy=json.loads(policy.dumps()),
            card=(REPOSITORY / "model_repository" / name / "README.md").read_text(encoding="utf-8"),
            link_code_to=None if name == "hippocampus" or not real_copy.is_dir() else real_copy,
            replace=True,
            first_pass=first_pass,
            measure=True,
        )
        write_whole(table_file(into, name), table.dumps())
        # One stand-in in the repository: a copy of it would miss what is mended in the other.
        stand_in = into / first_pass_name(compiled.contract) / "1" / "model.py"
        if not stand_in.is_symlink():
            stand_in.unlink()
            stand_in.symlink_to(Path("../..") / sampler_names(compiled.contract)[0] / "1" / "model.py")
        (WEIGHTS / f"{name}.routes.json").write_text(json.dumps(routes, indent=1) + "\n", encoding="utf-8")
        console.print(f"[bold]{name}[/bold] published into {into}", routes)


if __name__ == "__main__":
    typer.run(main)
