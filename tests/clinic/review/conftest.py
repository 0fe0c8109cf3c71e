"""The review page, served and seen in a browser."""

from ...support.review_page import chromium, filled, served, started, tab  # noqa: F401 (fixtures)
