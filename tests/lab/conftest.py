"""The lab's tests share the exporter's small networks and the client's server."""

from ..support.exported import classifier, compiled_classifier, compiled_unet, every_kind, seeded, unet  # noqa: F401
from ..support.fake_triton import brain, cells, chest, triton  # noqa: F401
