"""The exporter's small network, for a proof that is repeated."""

from ...support.exported import compiled_unet, unet  # noqa: F401 (fixtures)
