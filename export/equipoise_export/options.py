"""How a network is compiled: what may be chosen, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from equipoise_core.targets import Noise

from .errors import SpecError

LARGEST_FILE = 2_000_000_000
"""Bytes of weights that go into the ONNX file itself. Protobuf ends at 2³¹; the graph needs some of it."""


Member = TypeVar("Member", bound=Enum)


def member(kind: type[Member], value: Any, name: str) -> Member:
    """The member of an enum, also from its text. Raises SpecError."""
    try:
        return kind(value)
    except ValueError as error:
        raise SpecError(f"{name} {value!r}: expected {' or '.join(each.value for each in kind)}") from error


class Sizes(str, Enum):
    """Whether one published model serves several image sizes."""

    AUTO = "auto"  # several, where the network works at several
    DYNAMIC = "dynamic"  # several, or refuse
    FIXED = "fixed"  # one


class Answers(str, Enum):
    """What a network's output is."""

    UNSTATED = "unstated"  # logits; refused where it looks like probabilities
    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    MEAN = "mean"  # regression, which this is where it is unstated
    MEAN_VARIANCE = "mean_variance"
    MEAN_LOG_VARIANCE = "mean_log_variance"

    @property
    def noise(self) -> Noise:
        """What a regression's network states beside each number."""
        return {Answers.MEAN_VARIANCE: Noise.VARIANCE, Answers.MEAN_LOG_VARIANCE: Noise.LOG_VARIANCE}.get(
            self, Noise.NONE
        )


@dataclass(frozen=True)
class Options:
    """Choices of an export, `Options(sites="decoder.*", p=0.2)`; the defaults suit a network trained with dropout.

    Attributes:
        output: which of several outputs, by index, key or dotted path; of a regression also `MEAN,VARIANCE`.
        sites: only modules (in ONNX files Dropout nodes) whose name matches this pattern drop (`decoder.*`, commas
            between several); those that match a pattern behind an exclamation mark (`!*.rel_pos.*`) don't.
        p: overrides the probability of dropping, in the module itself; where nothing drops yet, also p = 0.
        min_depth: torch: only sites after this share (0 to 1) of the network's multiplications.
        dropout_at: ONNX files: a site behind every tensor whose name matches one of these patterns (commas between
            them): of channels where the tensor is a feature map, else of elements. Needs `p`.
        log_variance: torch: the output that holds log σ² of the logits, for a heteroscedastic network.
        margin: torch: pixels by which images are mirrored at each border before the network; for networks of unpadded
            convolutions, whose answer is smaller than the image by twice as much.
        deterministic: a network without anything random is wanted (it gets no `masks` input), and refused otherwise;
            None: it may be random or not.
        first_pass: whether the network without dropout is published beside the sampler: a policy may then decide on its
            one pass before any sample is drawn.
        answers: what its output is; probabilities are taken as they are. A regression's may hold a variance, or its
            logarithm, behind each mean: `[N, 2K]`, the K means first.
        sizes: what becomes of the contract's dynamic sizes. An ONNX file always serves one.
        bind: what the network takes besides the image, by parameter or input: numbers, lists, arrays, tensors.
        largest_file: bytes of weights in the ONNX file; more of them go into a second file beside it.
    """

    output: str | int | None = None
    sites: str | None = None
    p: float | None = None
    min_depth: float | None = None
    dropout_at: str | None = None
    log_variance: str | int | None = None
    margin: int = 0
    deterministic: bool | None = False
    first_pass: bool = True
    answers: Answers = Answers.UNSTATED
    sizes: Sizes = Sizes.AUTO
    bind: Mapping[str, Any] = field(default_factory=dict)
    largest_file: int = LARGEST_FILE

    def __post_init__(self) -> None:
        """Text stands for `sizes` and `answers`, and several patterns for one. Raises SpecError for what is neither."""
        for name, kind in (("answers", Answers), ("sizes", Sizes)):
            object.__setattr__(self, name, member(kind, getattr(self, name), name))
        for name in ("sites", "dropout_at"):
            value = getattr(self, name)
            if isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value):
                object.__setattr__(self, name, ",".join(value))
            elif value is not None and not isinstance(value, str):
                raise SpecError(f"{name} is {value!r}; expected a pattern of names, such as 'decoder.*'")
        for name in ("p", "min_depth"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise SpecError(f"{name} is {value!r}; expected a number between 0 and 1")
        if isinstance(self.margin, bool) or not isinstance(self.margin, int) or self.margin < 0:
            raise SpecError(f"margin is {self.margin!r}; expected pixels, a whole number from 0 on")
        if not isinstance(self.bind, Mapping):
            raise SpecError(f"bind is {self.bind!r}; expected a dictionary of names and values")


DEFAULTS = Options()
