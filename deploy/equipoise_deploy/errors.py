"""What can go wrong between `equipoise serve` and a ready server.

DeployError
├── EngineError        no Triton to start, or an incomplete one
├── RepositoryError    nothing servable where the models should be
├── PortTakenError     another process listens there
├── StartError         Triton ended before it was ready; carries its log
├── NotReadyError      Triton runs, but a model does not answer as it should
├── GaveUp             the server used up its restarts and still fails
└── ReleaseError       a release, store or bundle is missing or unusable for the request
    └── TamperedError  it is not as published: a file was changed, added or lost, or a signature does not hold
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


class DeployError(RuntimeError):
    """Something an operator can act on; the message says how.

    Attributes:
        models: what is wrong with which model, by its name, where single ones are the cause.
    """

    def __init__(self, message: str = "", models: Mapping[str, str] = MappingProxyType({})) -> None:
        super().__init__(message)
        self.models = models


class EngineError(DeployError):
    """No Triton to start, or an incomplete one."""


class RepositoryError(DeployError):
    """Nothing servable where the models should be."""


class PortTakenError(DeployError):
    """Another process listens there."""


class StartError(DeployError):
    """Triton ended before it was ready."""


class NotReadyError(DeployError):
    """Triton runs, but a model does not answer as it should."""


class GaveUp(DeployError):
    """The server used up its restarts and still fails."""


class ReleaseError(DeployError):
    """A release, store or bundle is missing or unusable for the request."""


class TamperedError(ReleaseError):
    """It is not as published: a file was changed, added or lost, or a signature does not hold."""
