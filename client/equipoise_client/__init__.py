"""Client of an Equipoise server: predictions with their uncertainty, and a route for each case.

>>> from equipoise_client import UncertaintyClient
>>> client = UncertaintyClient("localhost:8001")
>>> prediction = client.predict("pneumonia", image)  # doctest: +SKIP

`prediction.route` is `accept`, `review` or `reject`, `prediction.reason` says why, `prediction.mean` and
`prediction.variance` are arrays. All errors are EquipoiseErrors; see `equipoise_client.errors`.
"""

from equipoise_core.decision import Route

from .client import AsyncUncertaintyClient, UncertaintyClient
from .errors import (
    BadAnswer,
    Cancelled,
    DeadlineExceeded,
    EquipoiseError,
    InvalidInput,
    MissingExtra,
    ModelDied,
    NotPermitted,
    ServerFailure,
    ServerUnavailable,
    StudyRejected,
    UnknownModel,
    UnreadableImage,
)
from .prediction import Estimate, Prediction, Priority, Volume
from .transport import Retry, Tls

__version__ = "0.1.0"

__all__ = [
    "AsyncUncertaintyClient",
    "BadAnswer",
    "Cancelled",
    "DeadlineExceeded",
    "EquipoiseError",
    "Estimate",
    "InvalidInput",
    "MissingExtra",
    "ModelDied",
    "NotPermitted",
    "Prediction",
    "Priority",
    "Retry",
    "Route",
    "ServerFailure",
    "ServerUnavailable",
    "StudyRejected",
    "Tls",
    "UncertaintyClient",
    "UnknownModel",
    "UnreadableImage",
    "Volume",
    "__version__",
]
