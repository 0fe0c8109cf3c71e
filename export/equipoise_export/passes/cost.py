"""What a sampler costs beside a loop of passes, in multiplications: counted by `count_cost`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from equipoise_core.contract import Site
from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True)
class Cost:
    """Multiply-adds for one image of nominal size.

    Attributes:
        shared: made once for each image.
        sampled: made once for each sample.
        network: of one plain forward pass.
        sites: the sites, in bit order.
        depths: per site, the share of the network's multiplications that lie before it, 0 to 1.
    """

    shared: int
    sampled: int
    network: int
    sites: tuple[Site, ...]
    depths: tuple[float, ...]
    bits: int

    def gain(self, samples: int) -> float:
        """Predicted speed against a loop of `samples` passes."""
        return samples * self.network / max(self.shared + samples * self.sampled, 1)

    def document(self) -> dict[str, Any]:
        return {
            "shared_multiplications": self.shared,
            "sampled_multiplications": self.sampled,
            "network_multiplications": self.network,
            "bits": self.bits,
            "predicted_gain": {str(samples): round(self.gain(samples), 3) for samples in (1, 10, 20, 50)},
        }

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        table = Table(
            "site", "kind", "units", "p", "depth", title=f"{len(self.sites)} sites, {self.bits} bits a sample"
        )
        for site, depth in zip(self.sites, self.depths, strict=True):
            table.add_row(
                escape(site.name), site.kind.value, "×".join(map(str, site.shape)) or "1", f"{site.p:g}", f"{depth:.0%}"
            )
        yield table
        share = self.shared / max(self.shared + self.sampled, 1)
        yield (
            f"one pass {self.network / 1e6:.1f} M multiplications; of the sampler's, {share:.0%} are made once for "
            f"each image; predicted for 20 samples: {self.gain(20):.1f} × a loop"
        )
