"""Load is tested against a server that says what a test tells it to say."""

from ..support.fake_triton import brain, cells, chest, triton  # noqa: F401 (fixtures)
