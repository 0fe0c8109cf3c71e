"""The server's answer for each image: route, uncertainty, and features of the image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise_client.client import UncertaintyClient
from equipoise_client.errors import BadAnswer, EquipoiseError, InvalidInput
from equipoise_client.images import Prepared, fit, read_image
from equipoise_client.images.archives import image_in, images_in
from equipoise_client.images.labelled import PSEUDO_LABEL
from equipoise_client.images.prepare import with_spacing
from equipoise_client.images.read import ENDINGS
from equipoise_client.prediction import Prediction
from equipoise_core.contract import Contract, Task
from equipoise_core.decision import Route
from equipoise_core.scores import scores_of

EPISTEMIC: Mapping[Task, str] = {
    Task.SEGMENTATION: "rim_epistemic",
    Task.CLASSIFICATION: "mutual_information",
    Task.REGRESSION: "epistemic_deviation",
}
"""The score of what the model could learn from a label; the noise of the image is not in it."""


@dataclass(frozen=True)
class SurveyRequest:
    """What is requested for every image.

    Attributes:
        score: one of the task's case scores.
        spacing: mm per axis for files that state none.
        outputs: arrays to send back.
        timeout: seconds per file.
    """

    score: str
    spacing: tuple[float, ...] | None = None
    outputs: tuple[str, ...] = ()
    timeout: float = 60.0


@dataclass(frozen=True)
class SurveyedImage:
    """The server's answer for one image.

    Attributes:
        prediction: by the model's own number of samples; its route is the one that counts.
        score: at full T.
        features: the record's statistics of input and prediction.
    """

    file: Path
    prepared: Prepared
    prediction: Prediction
    score: float
    features: Mapping[str, float]


@dataclass(frozen=True)
class FailedImage:
    """An image without an answer; it goes to review."""

    file: Path
    error: str
    route: Route = Route.REVIEW


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The files that were named, and by their endings those in named folders, at any depth; sorted, each once.

    Of a folder that has a folder `images` (or nnU-Net's `imagesTr`), only that one is searched: beside it lie labels.
    The images of an archive of labelled cases are `ARCHIVE.npz/ID`. Pseudo-labels and hidden files are left out. Raises
    InvalidInput for a folder without images.
    """
    found: list[Path] = []
    for path in paths:
        if names := images_in(path):
            found += [path / name for name in names]
            continue
        own = next((path / name for name in ("images", "imagesTr") if (path / name).is_dir()), path)
        inside = list(_images_in(own)) if path.is_dir() else [path]
        if not inside:
            raise InvalidInput(f"{path} holds no image files; expected names that end in {', '.join(ENDINGS)}")
        found += inside
    unique: dict[Path, Path] = {}
    for file in sorted(found, key=str):
        unique.setdefault(file.resolve(), file)
    return list(unique.values())


def _images_in(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file.name.lower().endswith(ENDINGS) and PSEUDO_LABEL not in file.name and not hidden and file.is_file():
            yield file


def known_score(contract: Contract, wanted: str | None) -> str:
    """`wanted`, or the task's epistemic score, or what a single pass has instead.

    Raises InvalidInput for a score that the model has not.
    """
    scores = scores_of(contract)
    if wanted is None:
        return EPISTEMIC[contract.task] if EPISTEMIC[contract.task] in scores else next(iter(scores))
    if wanted not in scores:
        raise InvalidInput(f"{contract.name} has no score {wanted!r}; it has {', '.join(scores)}")
    return wanted


def survey(
    client: UncertaintyClient, contract: Contract, files: Sequence[Path], request: SurveyRequest
) -> Iterator[SurveyedImage | FailedImage]:
    """One answer or failure for each file, in their order.

    Scores compare only within one model under one policy: where either is replaced meanwhile, later files fail.
    """
    model: Any = None
    for file in files:
        try:
            answer = _ask(client, contract, file, request)
            decided_by = [answer.prediction.record.get(name) for name in ("model_digest", "policy_digest")]
            if model not in (None, decided_by):
                raise BadAnswer(f"{contract.name}: model or policy was replaced during the ranking; start again")
            model = decided_by
            yield answer
        except EquipoiseError as error:
            yield FailedImage(file, str(error))
        except Exception as error:  # noqa: BLE001 (one file must not take the others with it)
            # Only the kind of error is shown: a library's message may quote what stands in the file.
            kind = type(error).__name__
            yield FailedImage(file, f"{file.name}: {kind}: this is a fault of Equipoise, please report it")


def _ask(client: UncertaintyClient, contract: Contract, file: Path, request: SurveyRequest) -> SurveyedImage:
    image = image_in(file.parent, file.name) if file.parent.is_file() else read_image(file)
    prepared = fit(with_spacing(image, request.spacing), contract)
    spacing = prepared.spacing if contract.physical else None
    options: dict[str, Any] = {"spacing": spacing, "timeout": request.timeout}
    prediction = client.predict(contract.name, prepared.pixels, outputs=request.outputs, **options)
    record = prediction.record
    if record.get("samples") != record.get("samples_planned"):
        # Mutual information of few samples is too low: scores are compared at the same T, whichever stage decided.
        record = client.predict(
            contract.name, prepared.pixels, samples=record.get("samples_planned"), outputs=(), **options
        ).record
    return SurveyedImage(
        file,
        prepared,
        prepared.judge(prediction),
        _numbers(contract, record, "scores", request.score)[request.score],
        _numbers(contract, record, "statistics"),
    )


def _numbers(contract: Contract, record: Mapping[str, Any], entry: str, name: str | None = None) -> dict[str, float]:
    """Finite numbers by name. Raises BadAnswer where the record lacks one."""
    found = record.get(entry)
    found = {} if not isinstance(found, Mapping) else found if name is None else {name: found.get(name)}
    if not found or not all(isinstance(value, float | int) and math.isfinite(value) for value in found.values()):
        wrong = sorted(key for key, value in found.items() if not isinstance(value, float | int)) or [entry]
        raise BadAnswer(f"{contract.name}: its record has no number for {', '.join(wrong)}; the image cannot be ranked")
    return {str(key): float(value) for key, value in found.items()}
