"""What can go wrong while exporting: one tree.

ExportError
├── SpecError        the factory, the weights or the example cannot be loaded
├── PassFailed       a pass of the compiler broke: our fault, carries the history of passes
└── ExportRefused    the network cannot become a sampler as it stands: reason, site and remedy
    ├── CaptureRefused   no graph, or randomness in it that is not a mask
    └── ProofRefused     there is a graph, but it is not shown to equal the network
"""

from __future__ import annotations


class ExportError(Exception):
    """Nothing was published."""


class SpecError(ExportError):
    """The factory, the weights or the example input cannot be loaded as stated."""


class PassFailed(ExportError):
    """A pass broke on a graph that it should have understood."""


class ExportRefused(ExportError):
    """The network cannot be exported as it stands.

    Attributes:
        reason: what was found and what was expected.
        site: where in the network, in its own words (`decoder.2.dropout`), or "the whole network".
        remedy: what to do about it.
    """

    def __init__(self, reason: str, site: str, remedy: str) -> None:
        super().__init__(f"{site}: {reason}. {remedy}")
        self.reason = reason
        self.site = site
        self.remedy = remedy


class CaptureRefused(ExportRefused):
    """No graph could be captured, or there is randomness in it that cannot become a mask."""


class ProofRefused(ExportRefused):
    """The compiled sampler was not shown to equal the network."""
