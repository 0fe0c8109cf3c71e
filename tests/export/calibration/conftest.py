"""Chromium, for the report's page."""

from ...support.review_page import chromium  # noqa: F401 (a fixture)
