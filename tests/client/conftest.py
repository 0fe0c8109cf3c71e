"""The client's tests ask a server that says what they tell it to say."""

from ..support.fake_triton import brain, cells, chest, triton  # noqa: F401 (fixtures)
