"""What results are made of."""

from ...support.result_sources import head  # noqa: F401 (fixtures)
