"""Equipoise's exporter: a network trained with dropout in, a sampler whose masks are inputs out.

ONNX Runtime reports to its maker by default on Linux; a hospital's machine must not, so this comes before any import.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
