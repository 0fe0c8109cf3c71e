"""Cases → assessments: masks are drawn, samplers run chunk by chunk, moments merged, until it is enough.

Samplers are functions that are handed in: Triton's BLS, or ONNX Runtime.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .assessment import Assessment
from .budget import MOST_AT_ONCE, at_once
from .case import Case, Input, Model
from .contract import Contract
from .errors import SamplerFailure
from .masks import MaskLayout, draw_masks, mask_layout
from .moments import STATED, Array, Moments, moments_of_map, moments_of_outputs, moments_of_stated
from .reasons import Reason, reason
from .record import default_seed, input_digest
from .stages import FIRST_PASS
from .tiling import Tiling
from .validation import validate

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
    """A case that lacks nothing but its answers.

    Attributes:
        stages: numbers of samples after which it is looked at; 0: the first pass.
        window: spatial sizes that the network sees at once.
        tiling: of an image that is larger than the network's window.
    """

    case: Case
    seed: int
    input: Input
    stages: tuple[int, ...]
    window: tuple[int, ...]
    tiling: Tiling | None

    @property
    def alike(self) -> tuple[Any, ...]:
        """What cases have in common that can be sampled together."""
        return self.stages, self.window, self.tiling


def get_ready(model: Model, case: Case, stages: tuple[int, ...] | None = None) -> Ready:
    """Raises InvalidRequest where the case does not fit the contract.

    Args:
        stages: None: those that the model's policy and the caller ask for.
    """
    contract, size = model.contract, case.image.shape[1:]
    validate(contract, case)
    known = Input(input_digest(case.image), contract.preprocessing.normalise(case.image))
    seed = default_seed(known.digest, contract.model_digest) if case.seed is None else case.seed
    window = contract.window(size)
    tiling = Tiling(contract.padded(size), window) if contract.in_windows(size) else None
    return Ready(case, seed, known, stages or _stages(model, case), window, tiling)


def _stages(model: Model, case: Case) -> tuple[int, ...]:
    """Whoever names samples or a seed wants samples: no first pass then."""
    if case.samples is not None and model.contract.stochastic:
        return (case.samples,)
    if case.samples is not None or case.seed is not None:
        return tuple(samples for samples in model.stages if samples != FIRST_PASS)
    return model.stages


def assess(
    model: Model,
    case: Case,
    samplers: Sequence[RunSampler],
    each: Each = map,
    first_pass: RunSampler | None = None,
    spread: bool = False,
) -> Assessment:
    """One case; see `assess_all`."""
    (answer,) = assess_all(model, [case], samplers, each, first_pass, spread)
    return answer


def assess_all(
    model: Model,
    cases: Sequence[Case],
    samplers: Sequence[RunSampler],
    each: Each = map,
    first_pass: RunSampler | None = None,
    spread: bool = False,
) -> list[Assessment]:
    """Normalise, pad, then stage by stage: run, merge, decide, until every case is decided.

    Sample i comes from sampler i modulo their number: every prefix of the samples is spread evenly over the members of
    an ensemble, and all members enter the moments as equals (Lakshminarayanan et al. 2017). Cases that are alike
    share sampler requests, each under its own masks; each is decided by itself.

    Args:
        samplers: one for each of the contract's, in its order.
        each: how the samplers of one chunk are run: one after the other, or at the same time.
        first_pass: the contract's, where it has one.
        spread: outputs are wanted that only samples can give: where the first pass decided, samples are drawn
            afterwards. They do not change the route, but where they fail it is `review`.

    Where the first pass or a later chunk fails, the answer rests on what is there and the problem is noted, so that the
    decision is `review`.
    Raises InvalidRequest where a case does not fit the contract, SamplerFailure where there is no answer at all.
    """
    answers: dict[int, Assessment] = {}
    alike: defaultdict[tuple[Any, ...], list[tuple[int, Ready]]] = defaultdict(list)
    for number, ready in enumerate(get_ready(model, case) for case in cases):
        alike[ready.alike].append((number, ready))
    for those in alike.values():
        one = those[0][1]
        samples = min(model.chunk, max(one.stages))
        most = 1 if one.tiling else at_once(model.contract, one.window, samples, model.most)
        for some in (those[first : first + most] for first in range(0, len(those), most)):
            numbers, together = zip(*some, strict=True)
            run = Run(model, together, samplers, each, first_pass)
            for found in run.assessments():
                answers.update(zip(numbers, found, strict=True))
            if spread:
                answers.update(zip(numbers, run.with_spread([answers[number] for number in numbers]), strict=True))
    return [answers[number] for number in range(len(cases))]


def probe_first_pass(model: Model, case: Case, samplers: Sequence[RunSampler], first_pass: RunSampler | None) -> None:
    """Whether the first pass answers, where the policy has one. Raises SamplerFailure where it does not."""
    if model.stages[0] == FIRST_PASS:
        ready = get_ready(model, case, model.stages)
        (answer,) = next(Run(model, [ready], samplers, first_pass=first_pass).assessments(until_decided=False))
        if answer.problems:
            raise SamplerFailure(str(answer.problems[0]))


@dataclass(frozen=True)
class Run:
    """Cases that are `alike` and are answered together; several only where none is tiled. See `assess_all`."""

    model: Model
    ready: Sequence[Ready]
    samplers: Sequence[RunSampler]
    each: Each = map
    first_pass: RunSampler | None = None

    def __post_init__(self) -> None:
        contract = self.model.contract
        if len(self.samplers) != len(contract.samplers):
            raise ValueError(f"{contract.name} has {len(contract.samplers)} samplers; got {len(self.samplers)}")

    def assessments(self, until_decided: bool = True) -> Iterator[list[Assessment]]:
        """The cases' assessments after each stage; the last ones of all stages that could be, or had to be, reached.

        Args:
            until_decided: a case that is decided goes through no further stage. Without it all stages are gone through,
                and a failure is raised.
        """
        stages, every = self.ready[0].stages, range(len(self.ready))
        answers: dict[int, Assessment] = {}
        problems: dict[int, tuple[Reason, ...]] = dict.fromkeys(every, ())
        going = list(every)
        if stages[0] == FIRST_PASS:
            try:
                for i, moments in zip(going, self._first_moments(), strict=True):
                    answers[i] = self._assessment(i, moments, first_pass=True)
                    problems[i] = answers[i].problems
            except SamplerFailure as failure:
                if not until_decided:
                    raise
                problems = dict.fromkeys(every, (reason("first_pass_failed", message=str(failure)),))
            else:
                yield [answers[i] for i in every]
        drawn: dict[int, Moments] = {}
        for first, count in self._chunks(stages[-1]):
            if until_decided:
                going = [i for i in going if i not in answers or answers[i].decided is None]
            if not going:
                return
            failed: tuple[Reason, ...] = ()
            try:
                for i, more in zip(going, self._moments(going, first, count), strict=True):
                    drawn[i] = drawn[i] + more if i in drawn else more
            except SamplerFailure as failure:
                if not until_decided or not all(i in drawn or i in answers for i in going):
                    raise
                failed = (reason("sampler_failed", message=str(failure)),)
            if failed or first + count in stages:
                for i in going:
                    noted = (*problems[i], *failed)
                    if i in drawn:
                        answers[i] = self._assessment(i, drawn[i], noted, last=bool(failed))
                    else:
                        answers[i] = replace(answers[i], problems=noted, last=True)
                yield [answers[i] for i in every]
            if failed:
                return

    def with_spread(self, answers: Sequence[Assessment]) -> list[Assessment]:
        """The same answers; where a first pass gave one that says nothing of samples, they are drawn now."""
        lacking = [i for i, answer in enumerate(answers) if not (answer.shows_spread or answer.problems)]
        changed = list(answers)
        try:
            for first, count in self._chunks(self.model.samples) if lacking else ():
                for i, more in zip(lacking, self._moments(lacking, first, count), strict=True):
                    before = changed[i].sampled
                    changed[i] = replace(changed[i], sampled=before + more if before else more)
        except SamplerFailure as failure:
            failed = reason("sampler_failed", message=str(failure))
            changed = [
                replace(answer, problems=(failed,), last=True) if i in lacking else answer
                for i, answer in enumerate(changed)
            ]
        return [
            replace(answer, problems=(reason("answer_not_finite", model="sampler"),), last=True)
            if answer.sampled is not None and not answer.sampled.finite
            else answer
            for answer in changed
        ]

    @cached_property
    def _images(self) -> NDArray[np.float32]:
        contract, alike = self.model.contract, self.ready[0]
        padded = alike.window if alike.tiling is None else alike.tiling.size
        images = _stacked([contract.preprocessing.pad(one.input.normalised, padded) for one in self.ready])
        return contract.preprocessing.filled(images) if not contract.per_voxel else images

    @cached_property
    def _layout(self) -> MaskLayout:
        return mask_layout(self.model.contract, self.ready[0].window)

    def _chunks(self, samples: int) -> Iterator[tuple[int, int]]:
        """First sample of each chunk, and how many."""
        size = 1 if self.ready[0].tiling else self.model.chunk
        return ((first, min(size, samples - first)) for first in range(0, samples, size))

    def _first_moments(self) -> list[Moments]:
        if self.first_pass is None:
            raise SamplerFailure("there is none to run")
        contract = self.model.contract.of_first_pass
        return _run(contract, [self.first_pass], self.ready, self._images, (0, None), most=self.model.most)

    def _moments(self, of: Sequence[int], first: int, count: int) -> list[Moments]:
        """Of these cases' samples `first` … `first + count − 1`."""
        contract, ready = self.model.contract, [self.ready[i] for i in of]
        images = self._images if len(of) == len(self.ready) else self._images[list(of)]
        draws = _draws(contract, self._layout, [one.seed for one in ready], first, count)
        total: list[Moments] = []
        for some in self.each(partial(_run, contract, self.samplers, ready, images, most=self.model.most), draws):
            total = [a + b for a, b in zip(total, some, strict=True)] if total else some
        return total

    def _assessment(
        self, i: int, moments: Moments, problems: tuple[Reason, ...] = (), first_pass: bool = False, last: bool = False
    ) -> Assessment:
        ready = self.ready[i]
        planned = ready.stages[-1]
        if not moments.finite:
            which = "first pass" if first_pass else "sampler"
            problems = (*problems, reason("answer_not_finite", model=which))
        last = last or (not first_pass and moments.samples >= planned)
        return Assessment(self.model, ready.case, ready.seed, ready.input, moments, planned, last, problems, first_pass)


def _stacked(each: Sequence[NDArray[Number]]) -> NDArray[Number]:
    """`[N, …]`; of one image, which may be large, no copy."""
    return each[0][None] if len(each) == 1 else np.stack(each)


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
    *,
    most: int,
) -> list[Moments]:
    """One draw's moments, of each case; at most so many windows a run."""
    sampler, masks = samplers[draw[0]], draw[1]
    spatial = ready[0].case.image.shape[1:]
    if ready[0].tiling is not None:
        windows = partial(_one_sample, contract, sampler, masks)
        return [stitched_moments(contract, ready[0].tiling, images[0], windows, spatial, most)]
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
    most: int = MOST_AT_ONCE,
) -> Moments:
    """The moments of one sample over all windows, at most so many a run, padding cropped off again."""
    inside = (slice(None), *(slice(0, size) for size in spatial))
    stitched = tiling.stitch(padded, at_once(contract, tiling.window, 1, most), run)[inside]
    # What a network states of a voxel is linear in its windows: a mixture of them has the mean of their moments.
    if contract.states_moments:
        return moments_of_stated(stitched, contract)
    return moments_of_map(stitched, contract.activation)
