"""The clinic's tests share a server that says what they tell it to say, and a gateway's directory."""

from ..support.desk import desk  # noqa: F401 (fixtures)
from ..support.fake_triton import brain, cells, chest, triton  # noqa: F401
