"""The contract between exporter, server and client: what one published model takes, gives and draws at random.

It lies as `contract.json` in the public model's version directory and, without the sampler files' digests, in the
metadata of every `model.onnx`; both carry the same `digest`.
"""

from __future__ import annotations

import ast
import json
import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

from .canonical import canonical_json, digest_of, optional, parse_document, read_json
from .constant import Constant
from .preprocessing import Preprocessing
from .targets import Noise, Target

FORMAT = "equipoise-contract/2"

BYTEWISE = "pcg64dxsm-bytewise"
PHILOX = "philox4x64-32"
MASK_GENERATORS = (BYTEWISE, PHILOX)
"""How masks may be drawn; see `masks`. New contracts take the first."""


class ContractError(ValueError):
    """The contract does not hold together, or does not describe what it lies beside."""


def check_name(name: str) -> None:
    """Raises ContractError for a public model's name that Triton cannot take as folder, argument or URL."""
    if not _NAME.fullmatch(name):
        raise ContractError(
            f"a model named {name!r} cannot be served by Triton; expected at most 100 letters, digits, _ . and -, with "
            "a letter, a digit or _ first"
        )


_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


class Task(str, Enum):
    CLASSIFICATION = "classification"
    SEGMENTATION = "segmentation"
    REGRESSION = "regression"


class Activation(str, Enum):
    """How logits became probabilities: classes exclude each other (softmax) or each stands alone (sigmoid)."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


class Precision(str, Enum):
    """What the sampler computes the network in. Its inputs, statistics and outputs are single precision either way."""

    FP32 = "fp32"
    FP16 = "fp16"


class SiteKind(str, Enum):
    """What one bit of a site keeps or drops."""

    ELEMENT = "element"
    CHANNEL = "channel"
    PATH = "path"
    ATTENTION = "attention"


@dataclass(frozen=True)
class Site:
    """One place in the network where dropout acts.

    Attributes:
        name: where it is, in the network's own words (`decoder.2.dropout`).
        kind: what a bit stands for.
        shape: the units of one sample, without batch; empty for one unit. Each entry is a number or an expression of
            the contract's dimension names (`"X//8"`), where the network's size is dynamic.
        p: probability of dropping, 0 < p < 1. The graph multiplies what is kept by 1/(1 − p).
    """

    name: str
    kind: SiteKind
    shape: tuple[int | str, ...]
    p: float

    def __post_init__(self) -> None:
        if not 0.0 < self.p < 1.0:
            raise ContractError(f"site {self.name}: p is the probability of dropping, between 0 and 1; got {self.p}")

    def units(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape in numbers, given the size of each named dimension."""
        return tuple(evaluate(entry, sizes) for entry in self.shape)


@dataclass(frozen=True)
class Sampler:
    """One ONNX file that draws samples under this contract; several make an ensemble."""

    name: str
    digest: str


@dataclass(frozen=True)
class FirstPass(Sampler):
    """One deterministic pass, before any sample is drawn; `states_moments` as for the contract."""

    states_moments: bool = False


STATEMENTS = ("body_part", "view", "laterality", "age")
"""What a `Subject` can say of an image."""


@dataclass(frozen=True)
class Subject:
    """What the images showed that the network was trained on, in words of DICOM's headers. Empty: any.

    A header that says another thing rejects the image. One that says nothing forbids to accept it, unless the statement
    is optional.

    Attributes:
        body_parts: Body Part Examined (0018,0015), PS3.16 Annex L.
        views: View Position (0018,5101).
        lateralities: Image Laterality (0020,0062).
        ages: of patients, in completed years: lowest, highest.
        optional: those of `STATEMENTS` that need not be stated.
    """

    body_parts: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    lateralities: tuple[str, ...] = ()
    ages: tuple[float, float] | None = None
    optional: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.optional) - set(STATEMENTS)):
            raise ContractError(f"{', '.join(unknown)} cannot be optional; there are {', '.join(STATEMENTS)}")
        if self.ages is not None:
            if len(self.ages) != 2 or not 0 <= self.ages[0] <= self.ages[1]:
                raise ContractError(f"ages are the lowest and the highest in years; got {list(self.ages)}")
            object.__setattr__(self, "ages", tuple(map(float, self.ages)))  # as JSON gives them back: one digest

    def document(self) -> dict[str, Any]:
        return {name: list(value) for name, value in vars(self).items() if value}


@dataclass(frozen=True)
class Contract:
    """What a published model takes and gives. See client/README.md for the tensors.

    Attributes:
        name: the public model's name in Triton.
        activation: of classes. The numbers of a regression stay what they are; each stands alone, so it is SIGMOID here
            and not written.
        classes: one name per channel of the network's output. Softmax segmentation: the first is background. None of a
            regression, which has `targets`.
        channels: C of the network's input; the image that comes has `image_channels`.
        spatial: per spatial axis a fixed size or the name of a dynamic dimension.
        nominal: per spatial axis the size used for warm-up and for the health probe that proves readiness.
        maximum: per spatial axis the largest size that the network sees at once. A larger image to be segmented is
            taken in windows.
        spacing: per spatial axis (lowest, highest) voxel spacing in mm that the network was trained for, or None where
            the images have no physical scale; then no volume in mL is given.
        orientation: anatomical axes of `spatial` as nibabel spells them (`RAS`), or None.
        modalities: DICOM modality codes (`MR`) that the network was trained for; empty: not stated.
        subject: what the images showed that it was trained on; None: not stated.
        targets: of a regression: the numbers that it answers.
        noise: of a regression: what its network states beside each number.
        samples: T unless the policy or the caller says otherwise.
        generator: how masks are drawn, one of MASK_GENERATORS.
        precision: of weights and activations.
        states_moments: the network itself says, in each pass, how unsure it is: besides probabilities it gives their
            square and entropy, and a ranking of its voxels (`uncertainty`).
        first_pass: the network without dropout, or a single-pass model. A policy may decide on its answer; samples are
            drawn only where it does not.
        slices: a volume is taken slice by slice along its first spatial axis, which always is dynamic: how many
            neighbouring slices the network sees at once, as its channels, those at the ends repeated; 1: the slice
            alone. One sample is one set of masks for all slices. None: the network takes the whole image.
        constants: what the network takes besides the image.
    """

    name: str
    task: Task
    activation: Activation
    classes: tuple[str, ...]
    channels: int
    spatial: tuple[int | str, ...]
    nominal: tuple[int, ...]
    maximum: tuple[int, ...]
    preprocessing: Preprocessing
    sites: tuple[Site, ...]
    spacing: tuple[tuple[float, float], ...] | None = None
    orientation: str | None = None
    modalities: tuple[str, ...] = ()
    samples: int = 20
    samplers: tuple[Sampler, ...] = ()
    generator: str = BYTEWISE
    precision: Precision = Precision.FP32
    states_moments: bool = False
    first_pass: FirstPass | None = None
    subject: Subject | None = None
    targets: tuple[Target, ...] = ()
    noise: Noise = Noise.NONE
    slices: int | None = None
    constants: tuple[Constant, ...] = ()

    def __post_init__(self) -> None:
        self._check_answers()
        if not len(self.spatial) == len(self.nominal) == len(self.maximum):
            raise ContractError(
                f"spatial, nominal and maximum describe the same axes; got {self.spatial}, {self.nominal} and "
                f"{self.maximum}"
            )
        if self.generator not in MASK_GENERATORS:
            raise ContractError(
                f"masks are to be drawn by {self.generator!r}, which this version does not know; it knows "
                f"{', '.join(MASK_GENERATORS)}"
            )
        names = [site.name for site in self.sites]
        states = self.states_moments or (self.first_pass is not None and self.first_pass.states_moments)
        if states and not self.per_voxel:
            raise ContractError("only a segmentation states its own moments: those of a classifier are its samples'")
        if self.first_pass is not None and self.first_pass.name in {sampler.name for sampler in self.samplers}:
            raise ContractError(f"{self.first_pass.name} is a sampler and the first pass; each has a file of its own")
        try:
            self.preprocessing.image_channels(self.channels)
        except ValueError as error:
            raise ContractError(f"the preprocessing does not fit the network: {error}") from error
        if self.orientation is not None:
            self._check_orientation(self.orientation)
        for low, high in self.spacing or ():
            if not 0.0 < low <= high < math.inf:
                raise ContractError(f"spacing is the lowest and the highest mm of each axis, above 0; got {low}:{high}")
        if self.slices is not None:
            self._check_slices(self.slices)
        if len(set(names)) != len(names):
            raise ContractError(f"site names repeat: {sorted(name for name in names if names.count(name) > 1)}")

    def _check_answers(self) -> None:
        names = [target.name for target in self.targets]
        if self.task is Task.REGRESSION:
            if not names or self.classes or self.activation is not Activation.SIGMOID:
                raise ContractError("a regression has targets, no classes, and no softmax")
            if len(set(names)) != len(names):
                raise ContractError(f"names of targets repeat: {', '.join(names)}")
        elif not self.classes or names or self.noise is not Noise.NONE:
            raise ContractError(f"a {self.task.value} needs at least one class, and has no targets")
        plain = [name.strip().casefold() for name in self.classes]
        if "" in plain or len(set(plain)) != len(plain):
            raise ContractError(f"each class has a name of its own; got {', '.join(map(repr, self.classes))}")
        if self.per_voxel and "total" in self.classes:
            raise ContractError("a class cannot be called `total`, as the volume of all of them is; rename it")

    def _check_orientation(self, letters: str) -> None:
        axes = {next((pair for pair in ("LR", "AP", "IS") if letter in pair), "") for letter in letters}
        if "" in axes or len(axes) != len(letters) or len(letters) not in {self.rank, 3}:
            raise ContractError(
                f"orientation is {letters!r}; expected {self.rank} letters, one for each axis, of L or R, A or P, I or "
                "S, such as RAS"
            )

    def _check_slices(self, slices: int) -> None:
        if slices < 1 or slices % 2 == 0:
            raise ContractError(f"slices is {slices}; it must be 1, or an odd number: a slice and its neighbours")
        if not self.per_voxel:
            raise ContractError("only a segmentation can be answered slice by slice: a class is one of the whole image")
        if self.rank != 3 or not isinstance(self.spatial[0], str):
            raise ContractError(f"a volume of slices has three axes, the first one dynamic; got {self.spatial}")
        if slices > 1 and self.channels > 1:
            raise ContractError(
                f"{slices} neighbouring slices of {self.channels} channels: in which order the network takes them is "
                "not known; only slices of one channel can become channels"
            )

    @cached_property
    def of_network(self) -> Contract:
        """What the network itself takes: one slice, with its neighbours, of a volume that is taken slice by slice."""
        if self.slices is None:
            return self
        return replace(
            self,
            slices=None,
            channels=self.channels * self.slices,
            spatial=self.spatial[1:],
            nominal=self.nominal[1:],
            maximum=self.maximum[1:],
            preprocessing=replace(self.preprocessing, steps=(), intensities=None),
            spacing=self.spacing and self.spacing[1:],
        )

    @property
    def one_size(self) -> bool:
        """Whether the network takes a single size."""
        return all(isinstance(extent, int) for extent in self.of_network.spatial)

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.spatial)

    @property
    def image_channels(self) -> int:
        """C of the image that comes: 1 where preprocessing makes three of it."""
        return self.preprocessing.image_channels(self.channels)

    @property
    def stochastic(self) -> bool:
        """Whether there is anything to draw; a deterministic model has no `masks` input."""
        return bool(self.sites)

    @property
    def varies(self) -> bool:
        """Whether samples can differ: by their masks, or because they come from several networks."""
        return self.stochastic or len(self.samplers) > 1

    @property
    def files(self) -> tuple[Sampler, ...]:
        """All ONNX files: the samplers, and the first pass where there is one."""
        return (*self.samplers, *((self.first_pass,) if self.first_pass else ()))

    @cached_property
    def of_first_pass(self) -> Contract:
        """The contract of the first pass alone. Only where there is one."""
        first = self.first_pass
        assert first is not None
        return replace(self, sites=(), samplers=(first,), states_moments=first.states_moments, first_pass=None)

    @property
    def per_voxel(self) -> bool:
        """Whether it answers for each voxel; else for the image as a whole, which it then has to see as a whole."""
        return self.task is Task.SEGMENTATION

    @property
    def physical(self) -> bool:
        """Whether answers are measures, in mL or a target's unit: how large a voxel is decides about them."""
        return self.per_voxel or bool(self.targets)

    @property
    def answers(self) -> tuple[str, ...]:
        """A name for each of the K numbers that are answered: the classes, or a regression's targets."""
        return self.classes or tuple(target.name for target in self.targets)

    @property
    def states_variance(self) -> bool:
        """Whether a regression's network states a variance beside each number."""
        return self.noise is not Noise.NONE

    @property
    def decisions(self) -> int:
        """E: labels given per voxel (or image): one where classes exclude each other, else one per class. Of a
        regression, K uncertainties."""
        return 1 if self.activation is Activation.SOFTMAX else len(self.answers)

    @property
    def foreground(self) -> tuple[int, ...]:
        """Indices of the classes that are something: all but softmax segmentation's background."""
        background = self.per_voxel and self.activation is Activation.SOFTMAX
        return tuple(range(1 if background else 0, len(self.classes)))

    @property
    def overlapping(self) -> bool:
        """Whether several classes may be true of one voxel."""
        return self.activation is Activation.SIGMOID and len(self.classes) > 1

    def sizes(self, spatial: tuple[int, ...]) -> dict[str, int]:
        """Name → size of the dynamic dimensions, for an image of these (padded) spatial sizes."""
        return {name: size for name, size in zip(self.spatial, spatial, strict=True) if isinstance(name, str)}

    @property
    def multiples(self) -> tuple[int, ...]:
        """Per spatial axis what sizes are padded to a multiple of; slices are not padded."""
        multiple = self.preprocessing.multiple
        return (multiple,) * self.rank if self.slices is None else (1, multiple, multiple)

    def window(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Spatial sizes that the network sees at once of an image of this size: all of it, padded, or a part."""
        return tuple(
            extent if isinstance(extent, int) else min(given + -given % multiple, largest - largest % multiple)
            for given, extent, largest, multiple in zip(size, self.spatial, self.maximum, self.multiples, strict=True)
        )

    def padded(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Spatial sizes that an image of this size is padded to: at least those of `window`."""
        whole = (given + -given % multiple for given, multiple in zip(size, self.multiples, strict=True))
        return tuple(max(pair) for pair in zip(whole, self.window(size), strict=True))

    def in_windows(self, size: tuple[int, ...]) -> bool:
        """Whether an image of this size is more than the network sees at once."""
        return any(given > seen for given, seen in zip(size, self.window(size), strict=True))

    @cached_property
    def digest(self) -> str:
        """What the graph was built for: everything but the sampler files and the subject."""
        return digest_of(self.graph_document())

    @cached_property
    def model_digest(self) -> str:
        """The model as a whole, sampler files included: what policies and records are bound to."""
        return digest_of(self.document())

    def graph_document(self) -> dict[str, Any]:
        """The part that the ONNX metadata repeats."""
        return {
            "format": FORMAT,
            "name": self.name,
            "task": self.task.value,
            "activation": None if self.targets else self.activation.value,
            "classes": list(self.classes),
            "channels": self.channels,
            "spatial": list(self.spatial),
            "nominal": list(self.nominal),
            "maximum": list(self.maximum),
            "preprocessing": self.preprocessing.document(),
            "sites": [
                {"name": site.name, "kind": site.kind.value, "shape": list(site.shape), "p": site.p}
                for site in self.sites
            ],
            "spacing": None if self.spacing is None else [list(pair) for pair in self.spacing],
            "orientation": self.orientation,
            "modalities": list(self.modalities),
            "samples": self.samples,
            "precision": self.precision.value,
            "states_moments": self.states_moments,
            "generator": self.generator,
            **self._targets_document(),
            **({} if self.slices is None else {"slices": self.slices}),
            **({"constants": [constant.document() for constant in self.constants]} if self.constants else {}),
        }

    def _targets_document(self) -> dict[str, Any]:
        """Of a regression; other contracts keep the digests that they had before there was any."""
        if not self.targets:
            return {}
        return {"targets": [dict(vars(target)) for target in self.targets], "noise": self.noise.value}

    def document(self) -> dict[str, Any]:
        """The whole contract as it is written to `contract.json`."""
        samplers = [{"name": sampler.name, "digest": sampler.digest} for sampler in self.samplers]
        first_pass = None if self.first_pass is None else dict(vars(self.first_pass))
        subject = {} if self.subject is None else {"subject": self.subject.document()}
        return {**self.graph_document(), "samplers": samplers, "first_pass": first_pass, **subject}

    def dumps(self) -> str:
        return json.dumps({**self.document(), "digest": self.digest}, indent=1) + "\n"

    def graph_metadata(self) -> dict[str, str]:
        """Key → value of the ONNX file's metadata."""
        return {"equipoise.contract": canonical_json(self.graph_document()), "equipoise.digest": self.digest}


def load_contract(path: Path) -> Contract:
    """Reads `contract.json`. Raises ContractError that names what is wrong with it."""
    return parse_contract(read_json(path, ContractError))


def parse_contract(document: Any) -> Contract:
    """The contract that a JSON document describes; where it states a digest, it must be its own."""
    return parse_document(document, "contract", FORMAT, _contract, ContractError)


def _contract(document: Any) -> Contract:
    return Contract(
        name=str(document["name"]),
        task=Task(document["task"]),
        activation=Activation.SIGMOID if document.get("targets") else Activation(document["activation"]),
        classes=tuple(str(name) for name in document["classes"]),
        channels=int(document["channels"]),
        spatial=_extents(document["spatial"]),
        nominal=tuple(int(size) for size in document["nominal"]),
        maximum=tuple(int(size) for size in document["maximum"]),
        preprocessing=Preprocessing.read(document["preprocessing"]),
        sites=tuple(
            Site(str(site["name"]), SiteKind(site["kind"]), _extents(site["shape"]), float(site["p"]))
            for site in document["sites"]
        ),
        spacing=optional(document["spacing"], lambda axes: tuple((float(low), float(high)) for low, high in axes)),
        orientation=document["orientation"],
        modalities=tuple(str(code) for code in document["modalities"]),
        samples=int(document["samples"]),
        samplers=tuple(Sampler(str(s["name"]), str(s["digest"])) for s in document.get("samplers", ())),
        precision=Precision(document["precision"]),
        states_moments=bool(document["states_moments"]),
        generator=str(document["generator"]),
        first_pass=optional(
            document.get("first_pass"), lambda f: FirstPass(str(f["name"]), str(f["digest"]), bool(f["states_moments"]))
        ),
        subject=optional(document.get("subject"), _subject),
        targets=tuple(Target(str(each["name"]), str(each["unit"])) for each in document.get("targets", ())),
        noise=Noise(document.get("noise", Noise.NONE)),
        slices=optional(document.get("slices"), int),
        constants=tuple(map(Constant.read, document.get("constants", ()))),
    )


def _subject(stated: Any) -> Subject:
    ages = optional(stated.get("ages"), lambda pair: (float(pair[0]), float(pair[1])))
    words = {name: tuple(str(word) for word in value) for name, value in stated.items() if name != "ages"}
    return Subject(**words, ages=ages)


def _extents(entries: Any) -> tuple[int | str, ...]:
    return tuple(entry if isinstance(entry, str) else int(entry) for entry in entries)


_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv}


def evaluate(expression: int | str, sizes: Mapping[str, int]) -> int:
    """An integer expression (+ − * // and parentheses) of named sizes, e.g. `evaluate("X//8", {"X": 64})` → 8."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.Name) and node.id in sizes:
            return sizes[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            return int(_OPERATIONS[type(node.op)](value(node.left), value(node.right)))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        raise ContractError(f"{expression!r} is not an integer expression of {sorted(sizes)} with + - * //")

    if isinstance(expression, int):
        return expression
    try:
        return value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, ZeroDivisionError, RecursionError) as error:
        raise ContractError(f"{expression!r} is not an integer expression: {error}") from error
