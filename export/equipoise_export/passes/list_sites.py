"""Markers in the order of the graph become the contract's sites.

A site's units are the axes along which its draws differ, without the batch: of a batch axis N·k, the k stays, in the
place of the axis.
"""

from __future__ import annotations

from dataclasses import replace

from equipoise_core.contract import Site, SiteKind

from ..errors import CaptureRefused
from ..graph.marker import Call, marker_of
from .compilation import Compilation, Layout


def list_sites(c: Compilation) -> None:
    """Requires `layouts`; ensures `contract.sites` in bit order, one for each marker, and `calls`."""
    sites, calls = [], []
    for node in sorted(c.markers(), key=lambda node: marker_of(node).index):
        marker = marker_of(node)
        assert node.inputs[0] is not None
        layout = c.layouts[node.inputs[0]]
        if layout.axis is None or layout.axis not in marker.axes:
            raise CaptureRefused(
                f"its masks, drawn for axes {marker.axes} of a tensor {layout.shape}, are the same for all images",
                marker.site,
                "Drop activations, which have a batch axis, rather than weights or embeddings.",
            )
        units = tuple(_unit(layout, marker.shape, axis) for axis in marker.axes)
        shape = tuple(unit for unit in units if unit is not None)
        calls.append(Call(marker.index, marker.inverted))
        sites.append(Site(marker.site, SiteKind(marker.kind), shape, marker.p))
    c.contract = replace(c.contract, sites=tuple(sites))
    c.calls = tuple(calls)


def _unit(layout: Layout, spelled: tuple[int | str, ...], axis: int) -> int | str | None:
    if axis == layout.axis:
        return None if layout.factor == 1 else layout.factor
    if layout.dynamic[axis]:
        return spelled[axis]
    return layout.shape[axis]
