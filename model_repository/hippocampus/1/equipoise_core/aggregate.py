"""One case, from image to decision. Samplers are functions that are handed in: Triton's BLS, or ONNX Runtime."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .canonical import canonical_json, digest_of
from .contract import Activation, Contract, Task
from .decision import Decision, Evidence, Route, decide, settled
from .errors import InvalidRequest, SamplerFailure
from .masks import MaskLayout, draw_masks, mask_layout
from .moments import STATED, Array, Moments, moments_of_map, moments_of_outputs, moments_of_stated
from .policy import AcceptRule, Policy, VolumeRule
from .record import FORMAT, default_seed, input_digest, jsonable, software
from .scores import case_scores, default_score
from .statistics import input_statistics, prediction_statistics
from .tiling import Tiling
from .uncertainty import Uncertainty
from .volume import UNKNOWN, Volume, volume_of_samples, voxel_volume

MAX_SAMPLES = 1000
"""More samples than this in one request are refused: no figure gets better by them, and everybody else waits."""

MAX_VOXELS = 2**25
"""Of one image: 512 × 512 × 128. Moments of three classes then take 1 GB, and all that is held at once several."""

MAX_ANSWER = 2**31 - 2**20
"""Bytes of all arrays of one answer: gRPC's ceiling for a message, less what else stands in it."""

AT_ONCE = {Task.SEGMENTATION: 4, Task.CLASSIFICATION: 8}
"""Images of a request, or windows of a large one, that are sampled together: how much memory a sampler takes."""

UNCALIBRATED_LEVEL = 0.9
"""Share of the samples' volumes inside the interval where no policy widens it."""

RunSampler = Callable[[NDArray[np.float32], NDArray[np.uint8] | None], Mapping[str, Array]]
"""`image [N, C, *S]`, `masks [N, T, B]` (None: deterministic) → the sampler's output tensors by name.
Raises SamplerFailure, or Cancelled."""

Draw = tuple[int, NDArray[np.uint8] | None]
"""Index of a sampler, and the masks `[N, T, B]` that it is to run under (None: deterministic)."""

Each = Callable[[Callable[[Draw], list[Moments]], Sequence[Draw]], Iterable[list[Moments]]]
"""`map`, or one that works on several at once."""


@dataclass(frozen=True)
class Model:
    """A published model, ready to assess: what it is, its policy (or why there is none), and how it draws samples.

    Attributes:
        code_digest: SHA-256 of the code that decides.
        chunk: samples of an image per sampler request; None: all of them.
    """

    contract: Contract
    policy: Policy | None
    why_no_policy: str
    code_digest: str
    chunk: int | None = None

    @property
    def in_force(self) -> Policy | None:
        """The policy, where it is for this model: no number of a foreign one is used."""
        policy = self.policy
        return policy if policy is not None and policy.model_digest == self.contract.model_digest else None

    @property
    def default_samples(self) -> int:
        """T where the caller names none; without dropout, one for each member of the ensemble."""
        if not self.contract.stochastic:
            return len(self.contract.samplers)
        return self.in_force.samples if self.in_force else self.contract.samples


@dataclass(frozen=True)
class Case:
    """One image and what its caller asked for.

    Attributes:
        image: float32 `[C, *S]` in the source's own intensities.
        samples: T, or None for the policy's.
        seed: or None for the image's own.
        spacing: mm per spatial axis, or None.
    """

    image: NDArray[np.float32]
    samples: int | None = None
    seed: int | None = None
    spacing: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Input:
    """What is known of an image before any sample is drawn; shared by the assessments after each chunk.

    Attributes:
        digest: SHA-256 of the image as it came.
        normalised: float32 `[C, *S]`.
    """

    digest: str
    normalised: NDArray[np.float32]

    @cached_property
    def statistics(self) -> dict[str, float]:
        """Computed when first asked for: without a policy and a record, nobody asks."""
        return input_statistics(self.normalised)


@dataclass(frozen=True)
class Assessment:
    """What is known of one case after the samples drawn so far. Maps and volumes are computed when first asked for.

    Attributes:
        asked: T that was to be drawn.
        problems: what went wrong, in words.
        screened: this is the answer of the contract's screen; no sample was drawn.
    """

    model: Model
    case: Case
    seed: int
    input: Input
    moments: Moments
    asked: int
    problems: tuple[str, ...]
    screened: bool = False

    @property
    def contract(self) -> Contract:
        """What was run under: the model's contract, or its screen's."""
        return self.model.contract.screening if self.screened else self.model.contract

    @cached_property
    def uncertainty(self) -> Uncertainty:
        return Uncertainty(self.moments, self.model.contract.activation)

    @cached_property
    def scores(self) -> dict[str, float]:
        return case_scores(self.contract, self.uncertainty)

    @cached_property
    def prediction_statistics(self) -> dict[str, float]:
        return prediction_statistics(self.model.contract, self.uncertainty.mean)

    @property
    def statistics(self) -> dict[str, float]:
        """Of input and prediction, by name."""
        return {**self.input.statistics, **self.prediction_statistics}

    @cached_property
    def numbers(self) -> dict[str, float]:
        """All that routing may look at: scores, statistics and, where the policy says how, `strangeness`.

        Without a policy nothing looks at the input's statistics, which take longer than the rest for a small image.
        """
        policy = self.model.in_force
        if policy is None:
            return {**self.scores, **self.prediction_statistics}
        strangeness = policy.strangeness.number(self.input.statistics) if policy.strangeness else {}
        return {**self.scores, **self.statistics, **strangeness}

    @cached_property
    def stopped(self) -> bool:
        """Whether the policy's stopping rule is content: no more samples can be expected to change the route."""
        policy, samples = self.model.in_force, self.moments.samples
        named = self.case.samples is not None
        if policy is None or named or self.screened or self.problems or samples >= self.asked:
            return False
        return settled(policy, self.numbers, {*self.scores, *self.prediction_statistics}, samples)

    @property
    def score_name(self) -> str:
        """The score that routing looks at."""
        rule = self.rule
        return rule.score if rule is not None and rule.score in self.scores else default_score(self.contract)

    @property
    def rule(self) -> AcceptRule | None:
        """What the policy in force accepts by."""
        policy = self.model.in_force
        if policy is None:
            return None
        return policy.screen if self.screened else policy.accept

    @property
    def case_score(self) -> float:
        return self.scores[self.score_name]

    @property
    def volume_rule(self) -> VolumeRule | None:
        """What the policy says of volume intervals, where it is in force; else they are the samples' own."""
        return self.model.in_force.volume if self.model.in_force else None

    @cached_property
    def volumes(self) -> dict[str, Volume]:
        """Per class name and for `total` (all foreground); NaN without a spacing in mm, and for classification."""
        contract, rule = self.model.contract, self.volume_rule
        if contract.task is Task.CLASSIFICATION or self.case.spacing is None:
            return dict.fromkeys((*contract.classes, "total"), UNKNOWN)
        millilitres = self.moments.volumes * voxel_volume(self.case.spacing)
        columns = dict(zip(contract.classes, millilitres.T, strict=True))
        columns["total"] = millilitres[:, list(contract.foreground)].sum(axis=1)
        level = rule.level if rule else UNCALIBRATED_LEVEL
        return {
            name: volume_of_samples(column, level, rule.widening.get(name, 0.0) if rule else 0.0)
            for name, column in columns.items()
        }

    @cached_property
    def calibrated(self) -> Array:
        """The samples' mean, recalibrated as the policy says: `[K, *S]`, 0..1. Without that: the mean itself."""
        policy, mean = self.model.in_force, self.uncertainty.mean
        return (
            policy.recalibration.apply(mean, self.model.contract.activation)
            if policy and policy.recalibration
            else mean
        )

    @cached_property
    def labels_sensitive(self) -> NDArray[np.uint8]:
        """Labels that miss no more than the policy's `sensitive` rule allows; without one, the labels themselves."""
        policy = self.model.in_force
        if policy is None or policy.sensitive is None or self.model.contract.task is Task.CLASSIFICATION:
            return self.uncertainty.labels
        return sensitive_labels(self.model.contract, self.uncertainty.mean, policy.sensitive.threshold)

    @cached_property
    def decision(self) -> Decision:
        model, case = self.model, self.case
        evidence = Evidence(
            numbers=self.numbers,
            samples=self.moments.samples,
            asked=self.asked,
            own_samples=case.samples is not None,
            own_seed=case.seed is not None,
            spacing=case.spacing,
            problems=self.problems,
            stopped=self.stopped,
            windows=model.contract.in_windows(case.image.shape[1:]),
            screened=self.screened,
        )
        return decide(model.contract, model.policy, model.why_no_policy, evidence)

    @property
    def audited(self) -> bool:
        """Whether this accepted case is one of those that an expert looks at all the same."""
        policy = self.model.in_force
        if policy is None or policy.monitoring is None or self.decision.route is not Route.ACCEPT:
            return False
        return policy.monitoring.audits(digest_of([self.input.digest, policy.model_digest, policy.digest]))

    @property
    def ranks(self) -> dict[str, float]:
        """Where the case's numbers lie among those of the calibration cases; see `Monitoring.rank`."""
        policy = self.model.in_force
        if policy is None or policy.monitoring is None:
            return {}
        watched, digest = policy.monitoring, self.input.digest
        found = {name: watched.rank(name, self.numbers[name], digest) for name in self.numbers}
        return {name: rank for name, rank in found.items() if rank is not None}

    @cached_property
    def record(self) -> dict[str, Any]:
        """What is needed to replay the decision; see `record`."""
        model, case, policy = self.model, self.case, self.model.policy
        segmentation = model.contract.task is Task.SEGMENTATION
        return dict(
            jsonable(
                {
                    "format": FORMAT,
                    "model": model.contract.name,
                    "model_digest": model.contract.model_digest,
                    "policy_digest": policy.digest if policy else None,
                    "code_digest": model.code_digest,
                    "input_digest": self.input.digest,
                    "shape": list(case.image.shape),
                    "spacing": None if case.spacing is None else list(case.spacing),
                    "seed": str(self.seed),  # a string: 64 bits do not survive JSON's doubles
                    "seed_named": case.seed is not None,
                    "samples": self.moments.samples,
                    "samples_asked": self.asked,
                    "samples_named": case.samples is not None,
                    "stopped": self.stopped,
                    "screened": self.screened,
                    "problems": list(self.problems),
                    "masks_plan": "iid" if self.contract.stochastic else "none",
                    "score": self.score_name,
                    "case_score": self.case_score,
                    "scores": self.scores,
                    "statistics": self.statistics,
                    "strangeness": self.numbers.get("strangeness"),
                    "threshold": self.rule.threshold if self.rule else None,
                    "volume_level": self.volume_rule.level if segmentation and self.volume_rule else None,
                    "volume_ml": {n: vars(v) for n, v in self.volumes.items()} if segmentation else None,
                    "route": self.decision.route.value,
                    "reason": self.decision.reason,
                    "alpha": policy.accept.alpha if policy and policy.accept else None,
                    "delta": policy.accept.delta if policy and policy.accept else None,
                    "audit": self.audited,
                    "software": software(),
                }
            )
        )


@dataclass(frozen=True)
class Ready:
    """A case that lacks nothing but its samples.

    Attributes:
        asked: T.
        window: spatial sizes that the network sees at once.
        tiling: of an image that is larger than the network's window.
        problems: what went wrong before, in words.
    """

    case: Case
    seed: int
    input: Input
    asked: int
    window: tuple[int, ...]
    tiling: Tiling | None
    problems: tuple[str, ...] = ()

    @property
    def alike(self) -> tuple[Any, ...]:
        """What cases have in common that can be sampled together."""
        return self.asked, self.case.samples is None, self.window, self.tiling


def assess(
    model: Model,
    case: Case,
    samplers: Sequence[RunSampler],
    each: Each = map,
    hurried: bool = False,
    screen: RunSampler | None = None,
) -> Assessment:
    """One case; see `assess_all`."""
    (answer,) = assess_all(model, [case], samplers, each, hurried, screen)
    return answer


def assess_all(
    model: Model,
    cases: Sequence[Case],
    samplers: Sequence[RunSampler],
    each: Each = map,
    hurried: bool = False,
    screen: RunSampler | None = None,
) -> list[Assessment]:
    """Normalise, pad, draw masks, sample chunk by chunk, merge, until T or until the policy's stopping rule is content.

    Sample i comes from sampler i modulo their number: every prefix of the samples is spread evenly over the members of
    an ensemble, and all members enter the moments as equals (Lakshminarayanan et al. 2017). Cases that are alike
    share sampler requests, each under its own masks; each stops by itself.

    Args:
        samplers: one for each of the contract's, in its order.
        each: how the samplers of one chunk are run: one after the other, or at the same time.
        hurried: there is a deadline, before which the samplers may fail: samples come in quarters at least, so that
            there is something to answer with. Fewer samples than were to be drawn are never accepted.
        screen: the contract's, where it has one. It is run first, unless the caller named samples or seed; what the
            policy decides on its answer costs no sample. Without it, or where it fails or answers numbers that are
            not finite, the answer is for review: the policy's guarantee is for both together.

    Where a later chunk fails, what was drawn is kept and the problem noted, so that the decision is `review`.
    Raises InvalidRequest where a case does not fit the contract, SamplerFailure where no chunk at all succeeded.
    """
    answers: dict[int, Assessment] = {}
    alike: defaultdict[tuple[Any, ...], list[tuple[int, Ready]]] = defaultdict(list)
    for number, case in enumerate(cases):
        begun = _begun(model, case, screen)
        if isinstance(begun, Assessment):
            answers[number] = begun
        else:
            alike[begun.alike].append((number, begun))
    for those in alike.values():
        most = 1 if those[0][1].tiling else AT_ONCE[model.contract.task]
        for some in (those[first : first + most] for first in range(0, len(those), most)):
            numbers, ready = zip(*some, strict=True)
            for running in running_assessments(model, ready, samplers, _looks(model, ready[0], hurried), each):
                answers.update(zip(numbers, running, strict=True))
    return [answers[number] for number in range(len(cases))]


def _begun(model: Model, case: Case, screen: RunSampler | None) -> Ready | Assessment:
    """Ready for its samples, or decided by the contract's screen."""
    if not _to_be_screened(model, case):
        return get_ready(model, case)
    try:
        screened = screening(model, case, screen)
    except SamplerFailure as failure:
        return replace(get_ready(model, case), problems=(f"the screen: {failure}",))
    if screened.decision.route is not Route.REVIEW:
        return screened
    return replace(
        get_ready(model, case, screened.input), problems=tuple(f"the screen: {each}" for each in screened.problems)
    )


def _to_be_screened(model: Model, case: Case) -> bool:
    policy = model.in_force
    named = case.samples is not None or case.seed is not None
    decides = policy is not None and policy.screen is not None
    return decides and model.contract.screen is not None and not named


def screening(model: Model, case: Case, screen: RunSampler | None) -> Assessment:
    """The answer of the contract's screen. Raises InvalidRequest as `assess`, SamplerFailure where it cannot be had."""
    if screen is None:
        raise SamplerFailure("there is none to run")
    single = Model(model.contract.screening, None, "", model.code_digest)
    ((answer,),) = running_assessments(single, [get_ready(single, replace(case, samples=None))], [screen])
    seed = default_seed(answer.input.digest, model.contract.model_digest) if case.seed is None else case.seed
    return replace(answer, model=model, seed=seed, asked=model.default_samples, screened=True)


def get_ready(model: Model, case: Case, known: Input | None = None) -> Ready:
    """Raises InvalidRequest where the case does not fit the contract.

    Args:
        known: of this case, where it was looked at before.
    """
    contract, size = model.contract, case.image.shape[1:]
    validate(contract, case)
    known = known or Input(input_digest(case.image), contract.preprocessing.normalise(case.image))
    seed = default_seed(known.digest, contract.model_digest) if case.seed is None else case.seed
    asked = (contract.stochastic and case.samples) or model.default_samples
    window = contract.window(size)
    tiling = Tiling(contract.preprocessing.padded(size, window), window) if contract.in_windows(size) else None
    return Ready(case, seed, known, asked, window, tiling)


def _looks(model: Model, ready: Ready, hurried: bool) -> list[int]:
    """Numbers of samples after which it may be enough."""
    rule = model.in_force.stopping if model.in_force and ready.case.samples is None else None
    if hurried and (rule is None or not rule.looks):
        return [math.ceil(ready.asked * quarter / 4) for quarter in (1, 2, 3)]
    return [look.samples for look in rule.looks] if rule else []


def running_assessments(
    model: Model,
    ready: Sequence[Ready],
    samplers: Sequence[RunSampler],
    looks: Sequence[int] = (),
    each: Each = map,
) -> Iterator[list[Assessment]]:
    """The cases' assessments after each chunk of samples; the last ones are of all that could be, or had to be, drawn.

    Args:
        ready: several only where they are `alike` and none is tiled.
        looks: chunks end at these numbers of samples, as well as at multiples of the model's chunk.
        samplers, each: as for `assess_all`.
    """
    contract = model.contract
    if len(samplers) != len(contract.samplers):
        raise ValueError(f"{contract.name} has {len(contract.samplers)} samplers; got {len(samplers)}")
    layout = mask_layout(contract, ready[0].window)
    images = _stacked([contract.preprocessing.pad(one.input.normalised, one.window) for one in ready])
    drawn: dict[int, Moments] = {}
    answers: dict[int, Assessment] = {}
    going = list(range(len(ready)))
    for first, count in _chunks(ready[0].asked, looks, 1 if ready[0].tiling else model.chunk or model.default_samples):
        draws = _draws(contract, layout, [ready[i].seed for i in going], first, count)
        run = partial(_run, contract, samplers, [ready[i] for i in going], images)
        failed: tuple[str, ...] = ()
        try:
            for moments in each(run, draws):
                for i, more in zip(going, moments, strict=True):
                    drawn[i] = drawn[i] + more if i in drawn else more
        except SamplerFailure as failure:
            if not drawn:
                raise
            failed = (str(failure),)
        answers.update((i, _assessment(model, ready[i], drawn[i], failed)) for i in going)
        yield [answers[i] for i in range(len(ready))]
        staying = [place for place, i in enumerate(going) if not answers[i].stopped]
        if failed or not staying:
            return
        if len(staying) < len(going):
            going, images = [going[place] for place in staying], images[staying]


def _stacked(images: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """`[N, C, *S]`; of one image, which may be large, no copy."""
    return images[0][None] if len(images) == 1 else np.stack(images)


def _assessment(model: Model, ready: Ready, moments: Moments, failed: tuple[str, ...]) -> Assessment:
    spoilt = () if moments.finite else ("the sampler returned numbers that are not finite",)
    problems = (*ready.problems, *failed, *spoilt)
    return Assessment(model, ready.case, ready.seed, ready.input, moments, ready.asked, problems)


def _chunks(asked: int, looks: Sequence[int], chunk: int) -> Iterator[tuple[int, int]]:
    """First sample of each chunk, and how many."""
    ends = sorted({*range(chunk, asked, chunk), *(look for look in looks if look < asked), asked})
    return ((first, end - first) for first, end in zip([0, *ends], ends, strict=False))


def _draws(contract: Contract, layout: MaskLayout, seeds: Sequence[int], first: int, count: int) -> list[Draw]:
    """What each sampler is to draw of these samples; a sampler without a share is left out."""
    members = len(contract.samplers)
    starts = range(min(members, count))
    if not contract.stochastic:
        return [((first + start) % members, None) for start in starts]
    masks = np.stack([draw_masks(layout, seed, contract.model_digest, first, count) for seed in seeds])
    return [((first + start) % members, np.ascontiguousarray(masks[:, start::members])) for start in starts]


def _run(
    contract: Contract,
    samplers: Sequence[RunSampler],
    ready: Sequence[Ready],
    images: NDArray[np.float32],
    draw: Draw,
) -> list[Moments]:
    """One draw's moments, of each case."""
    sampler, masks = samplers[draw[0]], draw[1]
    spatial = ready[0].case.image.shape[1:]
    if ready[0].tiling is not None:
        windows = partial(_one_sample, contract, sampler, masks)
        return [stitched_moments(contract, ready[0].tiling, images[0], windows, spatial)]
    outputs = sampler(images, masks)
    return [moments_of_outputs(contract, outputs, i, one.case.image.shape[1:]) for i, one in enumerate(ready)]


def _one_sample(
    contract: Contract, sampler: RunSampler, masks: NDArray[np.uint8] | None, windows: NDArray[np.float32]
) -> NDArray[np.floating[Any]]:
    """Probabilities `[n, K, *window]` (over a single sample their sum is they themselves), or all that is stated."""
    same = None if masks is None else np.ascontiguousarray(np.broadcast_to(masks, (len(windows), *masks.shape[1:])))
    outputs = sampler(windows, same)
    return np.concatenate([outputs[name] for name in STATED], axis=1) if contract.states_moments else outputs["sum_p"]


def stitched_moments(
    contract: Contract,
    tiling: Tiling,
    padded: NDArray[np.float32],
    run: Callable[[NDArray[np.float32]], Array],
    spatial: tuple[int, ...],
) -> Moments:
    """The moments of one sample over all windows, padding cropped off again."""
    inside = (slice(None), *(slice(0, size) for size in spatial))
    stitched = tiling.stitch(padded, AT_ONCE[Task.SEGMENTATION], run)[inside]
    # What a network states of a voxel is linear in its windows: a mixture of them has the mean of their moments.
    return (
        moments_of_stated(stitched, contract)
        if contract.states_moments
        else moments_of_map(stitched, contract.activation)
    )


def validate(contract: Contract, case: Case) -> None:
    """Raises InvalidRequest that says what was given, what is expected and what to do."""
    image = case.image
    expected = f"[{contract.channels}, {', '.join(str(extent) for extent in contract.spatial)}]"
    if image.ndim != 1 + contract.rank:
        raise InvalidRequest(f"image has shape {list(image.shape)}; {contract.name} expects {expected} per image")
    if image.size == 0:
        raise InvalidRequest(f"image is empty: shape {list(image.shape)}; send at least one voxel per axis")
    if image.shape[0] != contract.channels:
        raise InvalidRequest(f"image has {image.shape[0]} channels; {contract.name} expects {contract.channels}")
    if contract.task is Task.CLASSIFICATION:
        _validate_whole(contract, image.shape[1:])
    if image[0].size > MAX_VOXELS:
        raise InvalidRequest(
            f"image has size {list(image.shape[1:])}, {image[0].size} voxels; one request takes at most {MAX_VOXELS}: "
            "crop it to the region of interest"
        )
    if not np.isfinite(image).all():
        count = int(image.size - np.isfinite(image).sum())
        raise InvalidRequest(f"image has {count} values that are NaN or infinite; send finite intensities")
    if case.samples is not None and not 1 <= case.samples <= MAX_SAMPLES:
        raise InvalidRequest(f"samples is {case.samples}; it must lie between 1 and {MAX_SAMPLES}")
    if case.spacing is not None and not all(np.isfinite(mm) and mm > 0 for mm in case.spacing):
        raise InvalidRequest(f"spacing is {list(case.spacing)}; it must be finite and above 0 mm on every axis")


def _validate_whole(contract: Contract, size: tuple[int, ...]) -> None:
    """A classifier sees the image as a whole, or not at all."""
    for given, extent, largest in zip(size, contract.spatial, contract.maximum, strict=True):
        if isinstance(extent, int) and given != extent:
            raise InvalidRequest(
                f"image has size {list(size)}; {contract.name} expects exactly {list(contract.spatial)}: resample it"
            )
        if given > largest:
            raise InvalidRequest(
                f"image has size {list(size)}; {contract.name} takes at most {list(contract.maximum)} in one request: "
                "crop it to the region of interest"
            )


def sensitive_labels(contract: Contract, mean: Array, threshold: float) -> NDArray[np.uint8]:
    """`[E, *S]`: foreground where its probability reaches `threshold`; softmax: its most probable class."""
    if contract.activation is Activation.SIGMOID:
        return (mean >= threshold).astype(np.uint8)
    foreground = list(contract.foreground)
    labels = mean[foreground].argmax(axis=0) + foreground[0]
    return np.asarray(np.where(1.0 - mean[0] >= threshold, labels, 0)[None], dtype=np.uint8)


def _volume_rows(volumes: list[Volume]) -> NDArray[np.float32]:
    return np.array([[v.mean, v.sd, v.low, v.high] for v in volumes], dtype=np.float32)


OUTPUTS: dict[str, Callable[[Assessment], NDArray[Any]]] = {
    "mean": lambda a: a.uncertainty.mean.astype(np.float32, copy=False),
    "variance": lambda a: a.uncertainty.variance.astype(np.float32, copy=False),
    "variance_corrected": lambda a: a.uncertainty.variance_corrected.astype(np.float32, copy=False),
    "aleatoric": lambda a: a.uncertainty.aleatoric.astype(np.float32, copy=False),
    "epistemic": lambda a: a.uncertainty.epistemic.astype(np.float32, copy=False),
    "own": lambda a: a.uncertainty.own.astype(np.float32, copy=False),
    "labels": lambda a: a.uncertainty.labels,
    "calibrated": lambda a: a.calibrated.astype(np.float32, copy=False),
    "labels_sensitive": lambda a: a.labels_sensitive,
    "case_score": lambda a: np.array([a.case_score], dtype=np.float32),
    "volume": lambda a: _volume_rows([a.volumes[name] for name in a.model.contract.classes]),
    "volume_total": lambda a: _volume_rows([a.volumes["total"]])[0],
    "samples_used": lambda a: np.array([a.moments.samples], dtype=np.int32),
    "route": lambda a: np.array([a.decision.route.value.encode()], dtype=object),
    "reason": lambda a: np.array([a.decision.reason.encode()], dtype=object),
    "record": lambda a: np.array([canonical_json(a.record).encode()], dtype=object),
}
"""Public output name → its tensor for one image, without the leading N."""

_PER_CLASS = ("mean", "variance", "variance_corrected", "calibrated")
_PER_DECISION = {"aleatoric": 4, "epistemic": 4, "own": 4, "labels": 1, "labels_sensitive": 1}


def validate_answer(contract: Contract, cases: Sequence[Case], names: Collection[str]) -> None:
    """Raises InvalidRequest where the outputs asked for would not fit into one message; before anything is drawn."""
    if contract.task is Task.CLASSIFICATION:
        return
    classes = 4 * len(contract.classes) * sum(name in names for name in _PER_CLASS)
    decisions = contract.decisions * sum(size for name, size in _PER_DECISION.items() if name in names)
    voxels = sum(int(case.image[0].size) for case in cases)
    size, labels = voxels * (classes + decisions), voxels * contract.decisions
    if size > MAX_ANSWER:
        raise InvalidRequest(
            f"the outputs asked for have {size / 2**30:.1f} GiB; one answer carries less than 2 GiB: ask for fewer of "
            f"them (labels have {labels / 2**30:.2f} GiB), for fewer images at a time, or crop the image"
        )


SEGMENTATION_ONLY = ("volume", "volume_total", "labels_sensitive")
