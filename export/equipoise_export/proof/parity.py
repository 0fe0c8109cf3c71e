"""The proof: the compiled sampler and the original network are the same function of image and masks.

The network's side (`references.py`) shares no code with the compiler. Moments are recomputed from its logits in double
precision by their definitions. A regression's are compared as shares of the largest number seen of each target.

A half-precision sampler is proven as ONNX Runtime runs it here and, for the answers, as hardware rounds it as well
(`rounding.py`); none of its activations may come near half's end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from math import prod
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from equipoise_core.contract import Contract, Precision
from equipoise_core.known_answers import IMAGES, KnownAnswers, known_image, known_masks, scales
from equipoise_core.masks import MaskLayout, draw_masks, mask_layout
from equipoise_core.moments import ANSWER, PER_SAMPLE
from equipoise_core.preprocessing import PADDING_VALUE
from equipoise_core.tolerance import DROWNED, TOLERANCES
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from ..errors import ProofRefused
from ..graph.session import session
from ..graph.storage import Weights
from ..progress import phase
from .definitions import outputs, probabilities
from .known import known_answers
from .references import Network
from .rounding import REACHED, rounded

Array = NDArray[Any]
SAMPLES = 3
ROUNDS = 2
TOGETHER = 16
"""Masks that are flipped in one run where samples come back one by one."""
MEAN_TOLERANCE = 1e-3
"""The same as the tolerance for the mean difference of a half-precision sampler over all voxels, classes and samples.
"""
LARGEST = float(np.finfo(np.float16).max)
HEADROOM = 4.0
"""Largest half number over the largest activation that the proof's images reach: other images go further."""


@dataclass(frozen=True)
class Check:
    """One property that was tested: the worst value seen and what was allowed."""

    name: str
    value: float
    limit: str
    passed: bool


@dataclass(frozen=True)
class SiteProof:
    """What flipping half of a site's bits does.

    Attributes:
        bits: bits of one sample.
        effect: largest change of a probability.
        dead: neither network nor sampler moved: the units matter for no image seen here.
    """

    name: str
    kind: str
    p: float
    bits: int
    effect: float
    dead: bool


@dataclass(frozen=True)
class Proof:
    """That the sampler equals the network, and how far that was tested.

    Attributes:
        known_answers: of the network, by which the machine that serves the sampler repeats this; None in an older one.
    """

    checks: tuple[Check, ...]
    sites: tuple[SiteProof, ...]
    images: int
    samples: int
    versions: dict[str, str]
    precision: str
    tolerance: float
    known_answers: dict[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """As it is written to `proof.json`."""
        return asdict(self)

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Proof:
        """Of a `proof.json`. Raises KeyError or TypeError where it is of another form."""
        known = {field.name: document[field.name] for field in fields(cls) if field.name != "known_answers"}
        checks = tuple(Check(**each) for each in known.pop("checks"))
        sites = tuple(SiteProof(**each) for each in known.pop("sites"))
        return cls(checks=checks, sites=sites, known_answers=document.get("known_answers"), **known)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        title = f"Proof over {self.images} images, {self.samples} samples, {self.precision}"
        checks = Table("property", "worst", "allowed", title=title)
        for check in self.checks:
            checks.add_row(check.name, f"{check.value:.2e}", check.limit)
        yield checks
        if self.sites:
            sites = Table("site", "kind", "p", "bits", "effect of half its bits")
            for site in self.sites:
                sites.add_row(
                    escape(site.name),
                    site.kind,
                    f"{site.p:g}",
                    str(site.bits),
                    "none" if site.dead else f"{site.effect:.2e}",
                )
            yield sites


def prove(
    network: Network,
    model: onnx.ModelProto,
    contract: Contract,
    example: Array,
    halves: Mapping[str, str] | None = None,
    weights: Weights | None = None,
) -> Proof:
    """Proves that `model` samples from `network`, within the tolerance of the contract's precision.

    Args:
        example: normalised images `[N ≥ 1, C, *nominal]`; noise images are added.
        halves: tensors of `model` in half precision, and the layers they belong to.
        weights: of `model`, where they do not lie in it.

    Raises:
        ProofRefused: naming the site where one can be named.
    """
    with phase(f"proving in {contract.precision.value}"):
        return _prove(Proving(network, model, contract, halves or {}, weights), example)


def _prove(proving: Proving, example: Array) -> Proof:
    contract = proving.contract
    spatial = contract.nominal
    generator = np.random.default_rng(1)
    images = [example[:1].astype(np.float32)]
    shape = (1, contract.channels, *spatial)
    for _ in range(2 * ROUNDS - 1):
        images.append(generator.standard_normal(shape).astype(np.float32) + images[0] * generator.random())
    padded = proving.padded(images[-1])
    if padded is not None:
        images[-1] = padded
    with proving.logits.ready():
        pairs = [np.concatenate(images[2 * index : 2 * index + 2]) for index in range(ROUNDS)]
        with phase("answers under the same masks"):
            proving.take_scale(np.concatenate(pairs))
            answers = [proving.parity(pair, seed) for seed, pair in enumerate(pairs)]
        other = proving.other_size()
        if other != spatial:
            with phase(f"answers at {'×'.join(map(str, other))}"):
                image = generator.standard_normal((1, contract.channels, *other)).astype(np.float32)
                proving.parity(image, seed=ROUNDS)
        with phase("batch-mates, samples and chunks"):
            first = proving.separate(pairs[0], answers[0])
        with phase("every site matters"):
            sites = () if first is None else proving.sites(images[0], first, answers[0].packed[:1, -1:])
        with phase("answers that the serving machine repeats"):
            known = proving.known()
    return Proof(
        checks=tuple(proving.checks.values()),
        sites=sites,
        images=len(images),
        samples=SAMPLES * len(images) if contract.stochastic else len(images),
        versions={"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        precision=contract.precision.value,
        tolerance=proving.tolerance,
        known_answers=known.document(),
    )


@dataclass(frozen=True)
class SamplerAnswer:
    """The sampler's outputs under packed masks `[N, T, B]`."""

    packed: Array
    outputs: dict[str, Array]


class Proving:
    """Both sides, and how they are compared.

    Args:
        network, model, contract, halves, weights: as for `prove`.
        run_on: opens the sampler's session; by default on the CPU.
    """

    def __init__(
        self,
        network: Network,
        model: onnx.ModelProto,
        contract: Contract,
        halves: Mapping[str, str],
        weights: Weights | None,
        run_on: Callable[..., onnxruntime.InferenceSession] = session,
    ) -> None:
        self.logits = network
        self.contract = contract
        self.tolerance = TOLERANCES[contract.precision]
        self.halves = halves
        self.session = run_on(model, weights=weights)
        half = contract.precision is Precision.FP16
        self.rounded = session(rounded(model, halves), weights=weights) if half else None
        self.outputs = [output.name for output in model.graph.output]
        self.samples = SAMPLES if contract.stochastic else 1
        self.checks: dict[str, Check] = {}
        self.scale: Array | None = None

    # --- the two sides ---

    def take_scale(self, images: Array) -> None:
        """Regression: both sides are divided by the largest answer of each number from here on."""
        if self.contract.targets:
            _, packed = self.masks(images, 0)
            answers = [
                self.network(image[None], mask) for image, masks in zip(images, packed, strict=True) for mask in masks
            ]
            self.scale = scales(np.stack(answers))

    def network(self, image: Array, packed: Array) -> Array:
        """See `probabilities`."""
        given = probabilities(self.logits, self.contract, image, packed)
        return given if self.scale is None else given / self.scale

    def sampler(self, images: Array, packed: Array | None) -> dict[str, Array]:
        return self.scaled(self.asked(images, packed))

    def asked(self, images: Array, packed: Array | None) -> dict[str, Array]:
        """The sampler's outputs as it gives them."""
        feeds = {"image": images} if packed is None else {"image": images, "masks": packed}
        return dict(zip(self.outputs, self.session.run(None, feeds), strict=True))

    def scaled(self, outputs: dict[str, Array]) -> dict[str, Array]:
        """The sampler's outputs as shares of the scale, as `network` gives them."""
        if self.scale is None:
            return outputs
        parts = dict(zip(("means", "variances"), np.split(self.scale, [len(self.contract.targets)]), strict=True))
        return {name: values / parts[name] for name, values in outputs.items()}

    def as_rounded(self, images: Array, packed: Array | None) -> dict[str, Array]:
        """The same by `rounding.py`. Raises ProofRefused that names the first layer to come near half's end."""
        assert self.rounded is not None
        feeds = {"image": images} if packed is None else {"image": images, "masks": packed}
        names = [output.name for output in self.rounded.get_outputs()]
        found = dict(zip(names, self.rounded.run(names, feeds), strict=True))
        reached = {name: float(found[REACHED + name]) for name in self.halves if REACHED + name in found}
        for name, largest in reached.items():
            if not largest <= LARGEST / HEADROOM:
                raise ProofRefused(
                    f"its activations reach {largest:.3g} on the images of the proof; half precision ends at "
                    f"{LARGEST:g}, and other images may go {HEADROOM:g} times as far",
                    self.halves[name],
                    "Export with --precision fp32.",
                )
        self.note("largest activation in half", max(reached.values()), f"≤ {LARGEST / HEADROOM:g}")
        return self.scaled({name: found[name] for name in self.outputs})

    def masks(self, images: Array, seed: int) -> tuple[MaskLayout, Array]:
        """Packed masks `[N, T, B]`, different for each image; every site drops and keeps in some sample of each."""
        layout = mask_layout(self.contract, images.shape[2:])
        if not self.contract.stochastic:
            return layout, np.zeros((len(images), 1, 0), np.uint8)
        draws_ = [
            draw_masks(layout, 1000 * seed + n, self.contract.digest, 0, self.samples) for n in range(len(images))
        ]
        bits = np.unpackbits(np.stack(draws_), axis=-1, bitorder="little")
        for offset, shape in zip(layout.offsets, layout.shapes, strict=True):
            site = slice(offset, offset + prod(shape))
            same = (bits[..., site] == bits[:, :1, site]).all(axis=(1, 2))  # few units that are rarely dropped
            bits[same, -1, site] ^= 1
        return layout, np.packbits(bits, axis=-1, bitorder="little")

    def padded(self, image: Array) -> Array | None:
        """The image with its last rows marked as padding, where images of this contract can be padded."""
        if all(isinstance(size, int) for size in self.contract.spatial):
            return None
        image = image.copy()
        image[:, :, -1:] = PADDING_VALUE
        return image

    def other_size(self) -> tuple[int, ...]:
        """The nominal size with one multiple more along the first dynamic axis, two along the next, and so on.

        Less where more is not allowed. Axes of one length become different ones: a mix-up of them shows.
        """
        contract, step, sizes = self.contract, 0, []
        for name, size, largest, multiple in zip(
            contract.spatial, contract.nominal, contract.maximum, contract.multiples, strict=True
        ):
            if not isinstance(name, int):
                step = (step // multiple + 1) * multiple
                size = size + step if size + step <= largest else max(size - step, multiple)
            sizes.append(size)
        return tuple(sizes)

    # --- the properties ---

    def parity(self, images: Array, seed: int, again: int = 3) -> SamplerAnswer:
        """The sampler equals the network on images under masks of this seed. Gives what the sampler answered.

        Args:
            again: how often other masks are drawn where all samples are equal.
        """
        _, packed = self.masks(images, seed)
        given = packed if self.contract.stochastic else None
        got = self.sampler(images, given)
        half = None if self.rounded is None else self.as_rounded(images, given)
        p = np.stack(
            [[self.network(image[None], mask) for mask in masks] for image, masks in zip(images, packed, strict=True)]
        )
        if not np.isfinite(p).all() or not all(np.isfinite(value).all() for value in got.values()):
            raise ProofRefused(
                "the output is not finite",
                "the whole network",
                "Check the weights for NaN, and that the example is normalised as in training.",
            )
        allowed = self.allowed(p)
        expected = outputs(self.contract, images, p)
        if "variances" in expected and float(expected["variances"].min()) < 0.0:
            raise ProofRefused(
                "the variance that it states is below 0 for some images",
                "the chosen output",
                "Is it the variance's logarithm? Then --answers mean_log_variance; else let it end in a softplus.",
            )
        if half is not None:
            self.rounding(half, expected, p)
        for name, value in expected.items():
            if got[name].shape != value.shape:
                raise ProofRefused(
                    f"{name} has shape {got[name].shape} where {value.shape} is expected, for images {images.shape}",
                    "the whole network",
                    "Export for one size (--sizes fixed), and report the network.",
                )
            worst = float(self.difference(name, got[name], value).max())
            limit = max(allowed, self.tolerance / 10) if name == "volumes" else allowed  # a sum of many rounds more
            if not worst <= limit:
                site, why = self.culprit(images[:1], allowed)
                raise ProofRefused(
                    f"under the same masks, network and sampler differ in {name} by {worst:.2e} "
                    f"(allowed {limit:.1g}){why}",
                    site,
                    "Export without this site (--sites), and report the network.",
                )
            self.note(f"{name}: same as the network", worst, f"≤ {limit:.1g}")
        if self.contract.stochastic:
            variance = float(p.var(axis=1).max())
            if not variance > 0:
                if again:  # where nearly all is dropped, a few samples may be equal by chance
                    return self.parity(images, seed + ROUNDS + 1, again - 1)
                raise ProofRefused(
                    "all samples are equal: the variance is zero",
                    "the whole network",
                    "Check that dropout sits before the chosen output and that the weights are trained ones.",
                )
            self.note("variance over samples", variance, "> 0", largest=False)
        return SamplerAnswer(packed, got)

    def difference(self, name: str, got: Array, expected: Array) -> Array:
        """The difference that the tolerances apply to."""
        difference = np.abs(got - expected)
        if name == "volumes":
            return difference / np.maximum(np.abs(expected), 1.0)  # type: ignore[no-any-return]
        return difference / self.samples if name.startswith("sum") else difference  # type: ignore[no-any-return]

    def rounding(self, half: dict[str, Array], expected: dict[str, Array], p: Array) -> None:
        """A half-precision sampler, rounded as hardware rounds, against the network."""
        spread = float(np.sqrt(p.var(axis=1).mean())) if self.contract.stochastic else np.inf
        for name, value in expected.items():
            difference = self.difference(name, half[name], value)
            whole, mean = float(difference.max()), float(difference.mean())
            limits = {"largest": (whole, self.tolerance)}
            if name == ANSWER[self.contract.task]:
                limits["mean"] = (mean, min(MEAN_TOLERANCE, max(DROWNED * spread, TOLERANCES[Precision.FP32])))
            for which, (found, limit) in limits.items():
                if not found <= limit:
                    raise ProofRefused(
                        f"rounded to half precision, the sampler's {name} differs from the network's by {found:.2e} "
                        f"({which}; allowed {limit:.1e}; standard deviation over samples {spread:.1e})",
                        "the whole network",
                        "Export with --precision fp32.",
                    )
                self.note(f"{name}: {which} change by rounding", found, f"≤ {limit:.1e}")

    def allowed(self, p: Array) -> float:
        """The tolerance, and less where the samples themselves hardly differ: 2 % of their spread, down to rounding.

        An untrained network moves by 1e-4 under its masks; a lost site would pass a plain 1e-4. Half precision is
        proven on top of single, which no lost site passes.
        """
        if not self.contract.stochastic or self.rounded is not None:
            return self.tolerance
        spread = float((p.max(axis=1) - p.min(axis=1)).max())
        return min(self.tolerance, max(0.02 * spread, self.tolerance / 40))

    def culprit(self, image: Array, allowed: float) -> tuple[str, str]:
        """The site whose bits, all flipped, change the two sides most differently."""
        if not self.contract.stochastic:
            return "the whole network", ""
        layout, packed = self.masks(image, seed=7)
        packed = packed[:, :1]
        name = ANSWER[self.contract.task]

        def sides(masks: Array) -> tuple[Array, Array]:
            p = self.network(image, masks[0, 0])[None, None]
            return outputs(self.contract, image, p)[name], self.sampler(image, masks)[name]

        network, sampler = sides(packed)
        worst, culprit = allowed, ""
        for index, site in enumerate(layout.sites):
            units = np.arange(prod(layout.shapes[index]))
            there, here = sides(_flipped(packed, layout.offsets[index] + units))
            mismatch = float(np.abs((there - network) - (here - sampler)).max())
            if mismatch > worst:
                worst, culprit = mismatch, site.name
        if culprit:
            return culprit, f"; flipping this site's bits changes the two by amounts that differ by {worst:.2e}"
        moved = np.abs(
            self.network(image * np.float32(1 + 1e-6), packed[0, 0]) - self.network(image, packed[0, 0])
        ).max()
        if moved > allowed / 10:
            return "the whole network", (
                f"; the network itself moves by {moved:.1e} when its image changes by a millionth, so no two ways to "
                "compute it agree: its activations are too large, as in one that was not trained"
            )
        return "the whole network", "; no single site explains it"

    def separate(self, images: Array, together: SamplerAnswer) -> SamplerAnswer | None:
        """Neither batch-mates nor other samples change an answer. Gives that of the first image's first sample alone.

        Args:
            together: what was answered to the images at once.
        """
        stochastic, packed = self.contract.stochastic, together.packed
        alone = self.sampler(images[:1], packed[:1] if stochastic else None)
        worst = max(_distance(together.outputs[name][:1], alone[name]) for name in self.outputs)
        self.require(
            "batch-mates change nothing",
            worst,
            1e-5,
            "an image's answer depends on its batch-mates",
            "Check its normalisation layers.",
        )
        if not stochastic:
            return None
        changed = packed[:1].copy()
        changed[:, -1] = ~changed[:, -1]
        other = self.sampler(images[:1], changed)
        separate = [name for name in self.outputs if name in PER_SAMPLE]
        worst = max(_distance(alone[name][:, :-1], other[name][:, :-1]) for name in separate)
        self.require(
            "samples are independent", worst, 1e-5, "masks of one sample change another", "Report this network."
        )
        chunks = [self.sampler(images[:1], chunk) for chunk in (packed[:1, :1], packed[:1, 1:])]
        for name in self.outputs:
            parts = [chunk[name] for chunk in chunks]
            merged = np.concatenate(parts, axis=1) if name in separate else np.sum(parts, axis=0) / self.samples
            whole = alone[name] if name in separate else alone[name] / self.samples
            self.require("chunks merge", _distance(merged, whole), 1e-5, "chunks do not add up", "Report this network.")
        return SamplerAnswer(packed[:1, :1], chunks[0])

    def sites(self, image: Array, unflipped: SamplerAnswer, another: Array) -> tuple[SiteProof, ...]:
        """Every site moves the output, or moves the network no more than the sampler.

        Args:
            unflipped: the answer to the image under one sample.
            another: masks `[1, 1, B]` of another sample.
        """
        layout, packed = mask_layout(self.contract, image.shape[2:]), unflipped.packed
        flips = []
        generator = np.random.default_rng(2)
        for index in range(len(layout.sites)):
            units = prod(layout.shapes[index])
            half = generator.permutation(units)[: max(1, units // 2)]
            flips.append(_flipped(packed, layout.offsets[index] + half))
        found = []
        effects = self.effects(image, flips, unflipped)
        for index, (site, flipped, effect) in enumerate(zip(layout.sites, flips, effects, strict=True)):
            units = prod(layout.shapes[index])
            if not np.isfinite(effect):  # DropBlock with half of the plane as seeds drops everything: as drawn, then
                bits = np.unpackbits(packed, axis=-1, bitorder="little")
                place = slice(layout.offsets[index], layout.offsets[index] + units)
                bits[..., place] = np.unpackbits(another, axis=-1, bitorder="little")[..., place]
                flipped = np.packbits(bits, axis=-1, bitorder="little")
                (effect,) = self.effects(image, [flipped], unflipped)
            if effect == 0.0:
                moved = np.abs(self.network(image, flipped[0, 0]) - self.network(image, packed[0, 0])).max()
                if moved > 1e-6:
                    raise ProofRefused(
                        f"flipping half of its bits moves the network by {moved:.2e} and the sampler not at all",
                        site.name,
                        "Report this network: the exporter lost a site.",
                    )
            found.append(SiteProof(site.name, site.kind.value, site.p, units, effect, effect == 0.0))
        if all(site.dead for site in found):
            raise ProofRefused(
                "no site moves the output by as much as single precision shows",
                "the whole network",
                "Check the chosen output, and that the weights are trained ones (--weights): with fresh ones what is "
                "dropped may vanish on its way.",
            )
        return tuple(found)

    def effects(self, image: Array, flips: list[Array], unflipped: SamplerAnswer) -> list[float]:
        """How far each mask `[1, 1, B]` moves the answer; where samples come back one by one, many in a run."""
        name = ANSWER[self.contract.task]
        base = unflipped.outputs[name]
        if self.contract.per_voxel:
            return [float(np.abs(self.sampler(image, flip)[name] - base).max()) for flip in flips]
        runs = [np.concatenate(flips[start : start + TOGETHER], axis=1) for start in range(0, len(flips), TOGETHER)]
        moved = [np.abs(self.sampler(image, run)[name] - base) for run in runs]
        return [float(effect) for effect in np.concatenate(moved, axis=1)[0].max(axis=1)]

    def known(self) -> KnownAnswers:
        """The network's answers for the machine that will serve; the sampler gives them here."""
        known = known_answers(self.logits, self.contract)
        for number in range(IMAGES[self.contract.task]):
            masks = known_masks(self.contract, number, known.drawn_for)[None]
            image = known_image(self.contract, number)
            got = self.asked(image, masks if self.contract.stochastic else None)
            for each in known.differences(self.contract, [number], range(masks.shape[1]), got, self.contract.precision):
                if not each.passed:
                    raise ProofRefused(
                        f"under the same masks, network and sampler differ: {each}",
                        "the whole network",
                        "Export without some of its sites (--sites), and report the network.",
                    )
        return known

    def note(self, name: str, value: float, limit: str, largest: bool = True) -> None:
        """Keeps the worst of a property over all rounds."""
        before = self.checks.get(name)
        if before is not None:
            value = max(value, before.value) if largest else min(value, before.value)
        self.checks[name] = Check(name, value, limit, True)

    def require(self, name: str, value: float, limit: float, reason: str, remedy: str) -> None:
        if not value <= limit:
            raise ProofRefused(f"{reason}: by {value:.2e} (allowed {limit:g})", "the whole network", remedy)
        self.note(name, value, f"≤ {limit:g}")


def _flipped(packed: Array, units: Array) -> Array:
    """Packed masks with the bits at `units` turned over in every sample."""
    bits = np.unpackbits(packed, axis=-1, bitorder="little")
    bits[..., units] ^= 1
    return np.packbits(bits, axis=-1, bitorder="little")


def _distance(one: Array, other: Array) -> float:
    """Largest difference, relative where values are large."""
    return float((np.abs(one - other) / np.maximum(np.abs(other), 1.0)).max()) if one.size else 0.0
