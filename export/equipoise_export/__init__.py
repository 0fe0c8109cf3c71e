"""Equipoise's exporter: a network trained with dropout in, a sampler whose masks are inputs out.

    from equipoise_export import calibrate, export

    export(network, name="nuclei", example=images, classes=("background", "nucleus"), task="segmentation",
           into="model_repository")
    calibrate("nuclei", data="labelled/", repository="model_repository")

Importing this loads no torch: each name is loaded when it is first asked for.
"""

from __future__ import annotations

import os

# ONNX Runtime reports to its maker by default on Linux; a hospital's machine must not, so this comes before any import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adaptation.adapt import AdaptedSite, adapt
    from .api import Exported, Inspection, export, inspect
    from .calibration.calibrate import Calibrated, calibrate
    from .errors import ExportError, ExportRefused
    from .options import Answers, Options, Sizes

_HOMES = {
    "export": "api",
    "inspect": "api",
    "Exported": "api",
    "Inspection": "api",
    "calibrate": "calibration.calibrate",
    "Calibrated": "calibration.calibrate",
    "adapt": "adaptation.adapt",
    "AdaptedSite": "adaptation.adapt",
    "Answers": "options",
    "Options": "options",
    "Sizes": "options",
    "ExportError": "errors",
    "ExportRefused": "errors",
}
__all__ = [
    "AdaptedSite", "Answers", "Calibrated", "ExportError", "ExportRefused", "Exported", "Inspection", "Options",
    "Sizes", "adapt", "calibrate", "export", "inspect",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
