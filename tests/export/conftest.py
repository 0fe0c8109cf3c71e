"""The exporter's tests share small networks, compiled once."""

from ..support.exported import (  # noqa: F401 (fixtures)
    classifier,
    compiled_classifier,
    compiled_unet,
    every_kind,
    seeded,
    unet,
)
