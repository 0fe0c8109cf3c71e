"""What results are made of."""

from ...support.findings import head  # noqa: F401 (fixtures)
