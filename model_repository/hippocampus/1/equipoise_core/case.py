"""A published model, one image that it is asked about, and what is known before any sample is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .budget import MOST_AT_ONCE
from .contract import Contract
from .policy import Policy
from .preprocessing import NORMALISED_LIMIT, PADDING_VALUE
from .reasons import Reason, reason
from .stages import FIRST_PASS, chunk_of
from .statistics import input_statistics


@dataclass(frozen=True)
class Model:
    """A published model, ready to assess: what it is, its policy (or why there is none), and how it draws samples.

    Attributes:
        code_digest: SHA-256 of the code that decides.
        at_most: samples per sampler request, at most; None: as many as all stages have in common.
        computed_by: what runs the samplers, for the record.
        most: images that a sampler takes in one request.
        closed: why nothing is accepted at present, in words; empty: accept is open.
    """

    contract: Contract
    policy: Policy | None
    why_no_policy: str
    code_digest: str
    at_most: int | None = None
    computed_by: Mapping[str, Any] = field(default_factory=dict)
    most: int = MOST_AT_ONCE
    closed: str = ""

    @property
    def in_force(self) -> Policy | None:
        """The policy, where it is for this model: no number of a foreign one is used."""
        policy = self.policy
        return policy if policy is not None and policy.model_digest == self.contract.model_digest else None

    @cached_property
    def stages(self) -> tuple[int, ...]:
        """Numbers of samples after which a case is looked at (0: the first pass). Without a policy there is one."""
        if self.in_force:
            return tuple(stage.samples for stage in self.in_force.stages)
        # Without dropout, one sample of each member of the ensemble.
        return (self.contract.samples if self.contract.stochastic else len(self.contract.samplers),)

    @property
    def samples(self) -> int:
        """T where the caller names none."""
        return self.stages[-1]

    @cached_property
    def chunk(self) -> int:
        """Samples of one sampler request."""
        return chunk_of([samples for samples in self.stages if samples != FIRST_PASS], self.at_most)


@dataclass(frozen=True)
class Case:
    """One image and what its caller asked for.

    Attributes:
        image: float32 `[C, *S]` in the source's own intensities.
        samples: T, or None for the policy's.
        seed: or None for the image's own.
        spacing: mm per spatial axis, or None.
        group: of cases, such as a scanner, that it is one of, for policies with certificates by group; or None.
    """

    image: NDArray[np.float32]
    samples: int | None = None
    seed: int | None = None
    spacing: tuple[float, ...] | None = None
    group: str | None = None


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

    @cached_property
    def problems(self) -> tuple[Reason, ...]:
        """Intensities that were clipped, since they are beyond what the network can be given."""
        beyond = (np.abs(self.normalised) >= NORMALISED_LIMIT) & (self.normalised != np.float32(PADDING_VALUE))
        return (reason("clipped", limit=NORMALISED_LIMIT),) if beyond.any() else ()
