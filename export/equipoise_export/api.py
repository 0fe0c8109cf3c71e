"""The exporter from Python: `export` a network, or only `inspect` what an export would make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from equipoise_core.contract import Contract, Task
from equipoise_core.preprocessing import NORMALISED_LIMIT
from numpy.typing import ArrayLike
from torch import Tensor, nn

from .compile import compile_first_pass, compile_sampler, compile_unproven, of_image
from .compiled import Compiled
from .draft import Description, example_image
from .errors import ExportError, SpecError
from .inputs.source import Source, read_source
from .measure import Gain, measure_gain
from .options import DEFAULTS, Options
from .passes.cost import Cost
from .progress import Phase, phase
from .proof.ensemble import check_members
from .proof.gpu import Placement
from .proof.parity import Check, Proof
from .proof.preprocessing import Transform, compare_preprocessing, refuse_difference
from .publish.repository import publish_pair
from .publish.triton_config import first_pass_name, sampler_names
from .volume import as_volumes, of_slices


@dataclass(frozen=True)
class Inspection:
    """What an export would make of a network: nothing is proven, nothing is written.

    Attributes:
        contract: of the sampler, with its sites.
        cost: what T samples would cost, predicted.
        notes: what the user should know.
        timings: how long it took, by phase.
    """

    contract: Contract
    cost: Cost
    notes: tuple[str, ...]
    timings: Phase


@dataclass(frozen=True)
class Exported(Inspection):
    """A published model.

    Attributes:
        folder: of the public model, in the repository.
        samplers: Triton's name of each sampler and of the first pass, and its proof.
        placements: where the nodes of each run on a GPU.
        gain: what was measured here; None for a network without randomness.
    """

    folder: Path
    samplers: Mapping[str, Proof]
    placements: Mapping[str, Placement]
    gain: Gain | None

    @property
    def proof(self) -> Proof:
        """Of the sampler; of an ensemble, of its first member."""
        return next(iter(self.samplers.values()))


def export(
    module: nn.Module | str | Path,
    *,
    into: str | Path,
    name: str | None = None,
    example: ArrayLike | Tensor | None = None,
    classes: Sequence[str] | None = None,
    task: Task | str | None = None,
    targets: Sequence[str] | None = None,
    weights: str | Path | Sequence[str | Path] = (),
    arguments: Mapping[str, Any] | None = None,
    transform: Transform | None = None,
    options: Options = DEFAULTS,
    replace: bool = False,
    **description: Any,
) -> Exported:
    """Turns a network trained with dropout into a sampler, proves that it is the same function, and publishes it.

    Only a MONAI bundle may leave out name, example, classes or task: as far as it states them itself.

    Args:
        module: an nn.Module (a copy of it is exported, on the CPU), `package.module:callable`, `file.py:callable`, an
            ONNX file or a MONAI bundle's folder.
        into: the model repository to publish into.
        example: normalised images `[N, C, *S]` as the network takes them: to trace and to prove with. Channels and
            sizes follow from it.
        classes: one name per output channel; softmax segmentation: background first.
        task: `segmentation`, `classification` or `regression`.
        targets: of a regression, instead of classes: name and unit of each number that it answers, `("age:mo",)`.
        weights: files of weights for `module`; several are a deep ensemble.
        arguments: keyword arguments of the callable, or overrides of a bundle's configuration.
        transform: the training's own preprocessing of one raw image, a tensor `[C, *S]`: the proof compares what it
            makes of raw images with what the steps of `preprocess` make of them.
        replace: whether another model of that name may be overwritten.
        description: more fields of `Description`: `activation`, `preprocess`, `multiple`, `spacing`, …

    Raises:
        ExportError: nothing was published; it says what was found, where, and what to do.
    """
    stated = {"name": name, "classes": classes, "targets": targets, "task": task, **description}
    with phase("export") as timings:
        source, draft, images, options = _read(module, weights, arguments, options, example, stated)
        checks, differs = _check_preprocessing(draft, source, transform, stated)
        with phase("sampler"):
            members = [
                _member(source, checks, compile_sampler(make(), draft, images, options)) for make in source.members
            ]
            check_members(members, images.numpy())
        network, _ = of_image(source.members[0](), draft, images, options)
        gain = measure_gain(members[0], network, images[:1])
        with phase("first pass"):
            first_pass, why_none = _first_pass(source, members, images, options)
        contract = members[0].contract
        published = dict(zip(sampler_names(contract, len(members)), members, strict=True))
        if first_pass is not None:
            published[first_pass_name(contract)] = first_pass
        with phase("GPU placement"):
            placements = {name: each.placement for name, each in published.items()}
        with phase("publishing"):
            folder = publish_pair(
                members[0], Path(into), replace=replace, further=members[1:], first_pass=first_pass, measure=True
            )
    notes = [note for member in members for note in member.notes] + why_none + differs + source.notes
    notes += [warning for placement in placements.values() for warning in placement.warnings]
    proofs = {name: each.proof for name, each in published.items()}
    cost = members[0].cost
    assert cost is not None
    return Exported(contract, cost, tuple(dict.fromkeys(notes)), timings, folder, proofs, placements, gain)


def _check_preprocessing(
    draft: Contract, source: Source, transform: Transform | None, stated: Mapping[str, Any]
) -> tuple[list[Check], list[str]]:
    """What the proof says of raw images; or a note, where the caller stated other steps than the bundle's own.

    Raises ProofRefused where the steps are not the training's.
    """
    known = transform or source.transform
    if known is None:
        return [], []
    check = compare_preprocessing(draft, known)
    if transform is None and not check.passed and Description.read(stated).preprocess is not None:
        return [], [f"on raw images the steps differ from the bundle's own transforms by {check.value:.2g}, as stated"]
    refuse_difference(check, draft)
    return [check], []


def _member(source: Source, checks: Sequence[Check], compiled: Compiled) -> Compiled:
    """With these checks; of an ensemble, which has no first pass, without what one is made of."""
    proof = replace(compiled.proof, checks=(*checks, *compiled.proof.checks))
    return replace(compiled, proof=proof, captured=compiled.captured if len(source.members) == 1 else None)


def _first_pass(
    source: Source, members: Sequence[Compiled], images: Tensor, options: Options
) -> tuple[Compiled | None, list[str]]:
    """The network without dropout, or a note why there is none; an ensemble has no single network."""
    contract = members[0].contract
    if not options.first_pass or len(members) > 1 or not contract.stochastic:
        return None, []
    if contract.targets and not contract.states_variance:
        return None, ["without a first pass: a network that states no variance does not say in one pass how sure it is"]
    try:
        return compile_first_pass(source.members[0](), members[0], images, options), []
    except ExportError as error:
        return None, [f"without a first pass: {error}"]


def inspect(
    module: nn.Module | str | Path,
    *,
    name: str | None = None,
    example: ArrayLike | Tensor | None = None,
    classes: Sequence[str] | None = None,
    task: Task | str | None = None,
    targets: Sequence[str] | None = None,
    weights: str | Path | Sequence[str | Path] = (),
    arguments: Mapping[str, Any] | None = None,
    options: Options = DEFAULTS,
    **description: Any,
) -> Inspection:
    """The sites of a network and what samples would cost. Arguments and errors as for `export`."""
    stated = {"name": name, "classes": classes, "targets": targets, "task": task, **description}
    with phase("inspect") as timings:
        source, draft, images, options = _read(module, weights, arguments, options, example, stated)
        compilation, _ = compile_unproven(source.members[0](), draft, images, options)
    assert compilation.cost is not None
    notes = [*compilation.notes, *source.notes]
    if len(source.members) > 1:
        notes = [*notes, f"the first of {len(source.members)} members; the samples are shared out among them"]
    return Inspection(compilation.contract, compilation.cost, tuple(notes), timings)


@phase("reading")
def _read(
    module: nn.Module | str | Path,
    weights: str | Path | Sequence[str | Path],
    arguments: Mapping[str, Any] | None,
    options: Options,
    example: ArrayLike | Tensor | None,
    stated: Mapping[str, Any],
) -> tuple[Source, Contract, Tensor, Options]:
    """What is to be exported, the contract without sites, images `[N ≥ 2, C, *nominal]`, and how it is compiled."""
    description = Description.read(stated)
    images = None if example is None else _images(example)
    if images is not None:
        low, high = float(images.min()), float(images.max())
        seen = (low, high) if low < high else None
        if description.slices is not None and images.dim() == 4:
            _, depth, _ = of_slices(tuple(images.shape[1:]), description.slices)
            images = as_volumes(images, description.slices, depth)
        description = replace(description, shape=tuple(images.shape[1:]), intensities=seen)
    source = read_source(module, weights, arguments)
    whole = description.over(source.stated)
    draft = whole.contract(options.sizes, options.answers)
    if whole.preprocess is None:
        source.notes.append(_note_on_intensities(images))
    if draft.targets and not draft.states_variance and options.deterministic and len(source.members) == 1:
        raise SpecError(
            "nothing in a --deterministic regression says how sure it is, unless it states a variance: --answers "
            "mean_variance or mean_log_variance, or leave its dropout in"
        )
    if len(source.members) > 1 and options.deterministic is False:
        options = replace(options, deterministic=None)  # several networks sample even if none of them is random
    return source, draft, example_image(draft) if images is None else images, options


def _note_on_intensities(images: Tensor | None) -> str:
    """Of a network whose preprocessing is not stated; more where the example `[N, C, *S]` was made in another way."""
    note = "images are z-scored before the network (--preprocess zscore), since nothing else was stated"
    if images is None or (spread := float(images.std())) == 0.0:
        return note
    mean = float(images.mean())
    if abs(mean) <= 0.5 and 0.5 <= spread <= 2.0:
        return note
    return f"{note}; but the example, of mean {mean:.3g} and standard deviation {spread:.3g}, was not: state its steps"


def _images(example: ArrayLike | Tensor) -> Tensor:
    """The example as a batch of two or more: a single image twice. Raises SpecError for what is no images."""
    try:
        images = torch.as_tensor(example).detach().to("cpu", torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SpecError(f"the example is a {type(example).__name__}; expected an array of images [N, C, *S]") from error
    if images.dim() < 3 or not len(images):
        raise SpecError(f"the example has shape {list(images.shape)}; expected images [N, C, *S]")
    if not images.isfinite().all() or images.abs().max() > NORMALISED_LIMIT:
        raise SpecError(
            f"the example holds NaN or values beyond ±{NORMALISED_LIMIT:g}; expected normalised images, as in training"
        )
    return images if len(images) > 1 else images.repeat(2, *[1] * (images.dim() - 1))
