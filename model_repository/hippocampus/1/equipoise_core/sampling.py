"""Cases → assessments: masks are drawn, samplers run chunk by chunk, moments merged, until it is enough.

Samplers are functions that are handed in: Triton's BLS, or ONNX Runtime.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .assessment import Assessment
from .case import Case, Input, Model
from .contract import Contract, Task
from .decision import Route
from .errors import SamplerFailure
from .masks import MaskLayout, draw_masks, mask_layout
from .moments import STATED, Array, Moments, moments_of_map, moments_of_outputs, moments_of_stated
from .record import default_seed, input_digest
from .tiling import Tiling
from .validation import validate

AT_ONCE = {Task.SEGMENTATION: 4, Task.CLASSIFICATION: 8}
"""Images of a request, or windows of a large one, that are sampled together: how much memory a sampler takes."""

RunSampler = Callable[[NDArray[np.float32], NDArray[np.uint8] | None], Mapping[str, Array]]
"""`image [N, C, *S]`, `masks [N, T, B]` (None: deterministic) → the sampler's output tensors by name.
Raises SamplerFailure, or Cancelled."""

Number = TypeVar("Number", np.float32, np.uint8)

Draw = tuple[int, NDArray[np.uint8] | None]
"""Index of a sampler, and the masks `[N, T, B]` that it is to run under (None: deterministic)."""

Each = Callable[[Callable[[Draw], list[Moments]], Sequence[Draw]], Iterable[list[Moments]]]
"""`map`, or one that works on several at once."""


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


def _stacked(each: Sequence[NDArray[Number]]) -> NDArray[Number]:
    """`[N, …]`; of one image, which may be large, no copy."""
    return each[0][None] if len(each) == 1 else np.stack(each)


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
    masks = _stacked([draw_masks(layout, seed, contract.model_digest, first, count) for seed in seeds])
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
    if contract.states_moments:
        return moments_of_stated(stitched, contract)
    return moments_of_map(stitched, contract.activation)
