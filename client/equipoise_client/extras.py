"""Optional parts are imported when first used; where one is missing, the message says what to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import MissingExtra


@contextmanager
def needs(extra: str, purpose: str) -> Iterator[None]:
    """Raises MissingExtra where an import in the block finds a package missing.

    Args:
        extra: of the distribution, as in `pip install 'equipoise[clinic]'`.
        purpose: what cannot be done without it: `"reading DICOM files"`.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("equipoise_"):
            raise  # a fault of ours, not of the installation
        raise MissingExtra(f"{purpose} needs {error.name}: pip install 'equipoise[{extra}]'") from error
