"""From a file to what a model takes, and from a model's answer back to the file's own grid."""

from .prepare import Prepared, fit
from .read import read_image
from .source import Kind, SourceImage

__all__ = ["Kind", "Prepared", "SourceImage", "fit", "read_image"]
