"""A published model, one image that it is asked about, and what is known before any sample is drawn."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .contract import Contract
from .policy import Policy
from .statistics import input_statistics


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
        """Computed when first asked for, or begun before: without a policy and a record, nobody asks."""
        begun: Future[dict[str, float]] | None = self.__dict__.get("begun")
        return begun.result() if begun else input_statistics(self.normalised)

    def begin(self, pool: Executor) -> None:
        """Begins to compute the statistics on a thread of the pool: a sampler runs with the interpreter released."""
        self.__dict__["begun"] = pool.submit(input_statistics, self.normalised)
