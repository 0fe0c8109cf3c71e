"""Answers of the original network that any machine can ask its own sampler for: a proof of device, libraries, options.

They lie in `proof.json`, as the export computed them. Images and masks are not stored: they follow from the contract,
bit by bit the same everywhere, since only integers and exact fractions are involved.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contract import Contract, Precision, Task
from .masks import draw_masks, mask_layout
from .moments import ANSWER, PER_SAMPLE, sampler_outputs
from .tolerance import DROWNED, TOLERANCES

FORMAT = "equipoise-known-answers/1"

SAMPLES = 4
"""Masks of each image."""

IMAGES = {Task.CLASSIFICATION: 4, Task.SEGMENTATION: 1, Task.REGRESSION: 4}
"""An image to be segmented has many numbers that show an error, others few."""

VALUES = 4096
"""Numbers that are stored, at most: 22 kB."""

MEAN = "mean difference"
"""Name of what is no output: the mean over the probabilities that are compared."""

Array = NDArray[np.floating[Any]]


def known_image(contract: Contract, number: int) -> NDArray[np.float32]:
    """`[1, C, *nominal]` in the range of the contract's preprocessing: blocks under noise, so edges and texture.

    The weight of the noise follows from the number: 1/4, 1/8, 1/2, 1/16.
    """
    source, shape = np.random.PCG64DXSM(number), (contract.channels, *contract.nominal)
    noise, blocks = _fractions(source, shape), _fractions(source, (contract.channels, *(5,) * contract.rank))
    for axis, size in enumerate(contract.nominal, start=1):
        blocks = np.take(blocks, np.arange(size) * 5 // size, axis=axis)
    weight = (0.25, 0.125, 0.5, 0.0625)[number % 4]
    unit = blocks * (1.0 - weight) + noise * weight
    low, high = (end.reshape(-1, *[1] * contract.rank) for end in contract.preprocessing.normalised_range(len(unit)))
    return (low + (high - low) * unit)[None].astype(np.float32)


def known_masks(contract: Contract, number: int, drawn_for: str) -> NDArray[np.uint8]:
    """Packed masks `[SAMPLES, B]` of an image, `[1, 0]` where nothing is drawn.

    `drawn_for` is the digest that keys them.
    """
    if not contract.stochastic:
        return np.zeros((1, 0), np.uint8)
    return draw_masks(mask_layout(contract, contract.nominal), number, drawn_for, 0, SAMPLES)


def _fractions(source: np.random.PCG64DXSM, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Multiples of 2⁻²⁴ in 0..1."""
    words = np.asarray(source.random_raw(math.prod(shape)), dtype=np.uint64)
    return ((words >> np.uint64(40)).astype(np.float64) * 2.0**-24).reshape(shape)


@dataclass(frozen=True)
class Difference:
    """The worst of one output.

    Attributes:
        output: its name, or what was computed of it.
        where: which number of it, in words.
        difference, limit: absolute, of volumes relative.
    """

    output: str
    where: str
    found: float
    expected: float
    difference: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.limit  # not where it is NaN

    def __str__(self) -> str:
        sign = "≤" if self.passed else "not ≤"
        return (
            f"{self.output}, {self.where}: found {self.found:.6g}, expected {self.expected:.6g}; "
            f"difference {self.difference:.2g} {sign} {self.limit:.2g}"
        )


@dataclass(frozen=True)
class KnownAnswers:
    """What the network answers to image i under its sample t.

    Attributes:
        drawn_for: digest that the masks are drawn for.
        points: P voxels by their position in an image `[*nominal]` in C order; none where there are no voxels.
        outputs: of each output of the sampler, for single samples, float32: maps `[I, T, rows, P + 1]`, the last their
            mean over all voxels; those of `PER_SAMPLE` `[I, T, K]`.
    """

    drawn_for: str
    points: NDArray[np.int64]
    outputs: Mapping[str, NDArray[np.float32]]

    def document(self) -> dict[str, Any]:
        outputs = {
            name: {"shape": list(values.shape), "float32": base64.b64encode(values.astype("<f4").tobytes()).decode()}
            for name, values in self.outputs.items()
        }
        return {
            "format": FORMAT,
            "drawn_for": self.drawn_for,
            "points": " ".join(str(point) for point in self.points),
            "outputs": outputs,
        }

    @classmethod
    def read(cls, document: Any, contract: Contract) -> KnownAnswers:
        """Raises ValueError where a document does not hold answers to this contract's images."""
        try:
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']}; expected {FORMAT}")
            points = np.array([int(point) for point in document["points"].split()], dtype=np.int64)
            outputs = {
                str(name): np.frombuffer(base64.b64decode(each["float32"]), "<f4").reshape(each["shape"])
                for name, each in document["outputs"].items()
            }
            both = (IMAGES[contract.task], SAMPLES if contract.stochastic else 1)
            fits = all(name in outputs and outputs[name].shape[:2] == both for name in sampler_outputs(contract))
            if not fits or not ((points >= 0) & (points < math.prod(contract.nominal))).all():
                raise ValueError("they are not answers to images of this contract")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"malformed: {type(error).__name__}: {error}") from error
        return cls(str(document["drawn_for"]), points, outputs)

    def differences(
        self,
        contract: Contract,
        images: Sequence[int],
        samples: Sequence[int],
        found: Mapping[str, Array],
        precision: Precision,
    ) -> Iterator[Difference]:
        """The worst difference of each output, of the variance over samples, and of the mean beside their spread.

        Args:
            images, samples: which ones the sampler was asked for, N and T of them.
            found: its outputs.
            precision: that it computes in.

        Raises:
            ValueError: an output is missing, or has another shape.
        """
        tolerance, count = TOLERANCES[precision], len(samples)
        gathered: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
        for name, values in self.outputs.items():
            single = values[np.asarray(images)][:, np.asarray(samples)].astype(np.float64)  # [N, T, …]
            if name not in found:
                raise ValueError(f"the answer has no output {name}")
            if name.startswith("sum_"):
                expected, shape = single.mean(axis=1), (len(images), single.shape[2], *contract.nominal)
                _check_shape(name, found[name], shape)
                got = at_points(found[name], self.points) / count
            else:
                expected, got = single, np.asarray(found[name], np.float64)
                _check_shape(name, got, expected.shape)
            gathered[name] = got, expected
            yield _worst(name, got, expected, tolerance * self._scale(contract, name), self._where(contract, name))
        scale = self._scale(contract, ANSWER[contract.task])
        p, known = gathered[ANSWER[contract.task]]
        mean_error, limit = float((np.abs(p - known) / scale).mean()), tolerance
        where = "of numbers, over their largest" if contract.task is Task.REGRESSION else "of probabilities"
        if contract.stochastic and not contract.states_moments:
            # Where each sample's p is off by at most ε, their standard deviation is too; sums of T round by T·2⁻²³.
            if not contract.per_voxel:
                got, expected, rounding = p.var(axis=1), known.var(axis=1), 0.0
            else:
                p2, known2 = gathered["sum_p2"]
                got, expected = (p2 - p * p)[..., :-1], np.maximum(known2 - known * known, 0.0)[..., :-1]
                rounding = count * 2.0**-23
            limits = 2 * tolerance * scale * np.sqrt(expected) + (tolerance * scale) ** 2 + rounding
            yield _worst("variance", got, expected, limits, self._where(contract, "variance"))
            spread = float(np.sqrt((expected / scale**2).mean()))
            limit, where = max(DROWNED * spread, TOLERANCES[Precision.FP32]), f"of samples that spread by {spread:.2g}"
        yield Difference(MEAN, where, mean_error, 0.0, mean_error, limit)

    def _scale(self, contract: Contract, name: str) -> Any:
        """What tolerances are multiples of: 1, of a regression the largest answer of each target, `[K]`."""
        return scales(self.outputs[name].reshape(-1, self.outputs[name].shape[-1])) if contract.targets else 1.0

    def _where(self, contract: Contract, name: str) -> Any:
        def words(index: tuple[int, ...]) -> str:
            image, *place = index
            if name in PER_SAMPLE:
                return f"image {image}, sample {place[0]}, {contract.answers[place[1]]}"
            if not contract.per_voxel:
                return f"image {image}, {contract.answers[place[0]]}"
            row, point = place
            per_class = name == "variance" or self.outputs[name].shape[2] == len(contract.classes)
            of = contract.classes[row] if per_class else "all classes"
            if point == len(self.points):
                return f"mean over all voxels of {of}"
            voxel = ", ".join(str(int(axis)) for axis in np.unravel_index(self.points[point], contract.nominal))
            return f"voxel ({voxel}) of {of}"

        return words


def scales(numbers: Array) -> NDArray[np.float64]:
    """The largest of each column's numbers `[n, K]` in size, `[K]`; 1 of a column of zeros."""
    largest = np.abs(numbers).max(axis=0).astype(np.float64)
    return np.where(largest > 0.0, largest, 1.0)


def at_points(maps: Array, points: NDArray[np.int64]) -> NDArray[np.float64]:
    """`[N, rows, *S]` → `[N, rows, P + 1]`: values at points, and the mean over all voxels."""
    flat = maps.reshape(*maps.shape[:2], -1)
    mean = flat.mean(axis=-1, dtype=np.float64, keepdims=True)
    return np.concatenate([flat[..., points].astype(np.float64), mean], axis=-1)


def _check_shape(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} has the shape {array.shape}; expected {shape}")


def _worst(name: str, got: Array, expected: Array, limit: Any, where: Any) -> Difference:
    difference = np.abs(got - expected)
    if name == "volumes":
        difference = difference / np.maximum(np.abs(expected), 1.0)
    limits = np.broadcast_to(np.asarray(limit, np.float64), difference.shape)
    excess = np.where(np.isfinite(difference), difference / limits, np.inf)
    index = np.unravel_index(int(excess.argmax()), difference.shape)
    values = (float(each[index]) for each in (got, expected, difference, limits))
    return Difference(name, where(tuple(int(i) for i in index)), *values)
