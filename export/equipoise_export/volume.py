"""A network of 2D images that takes volumes slice by slice (`slices`): its contract, and images as volumes and back."""

from __future__ import annotations

from dataclasses import replace

import torch
from equipoise_core.contract import Contract, Task
from equipoise_core.steps import ClipPercentiles, ScalePercentiles, ZScore, spelled
from torch import Tensor

from .errors import SpecError

SLICES = "D"
"""Name of the axis that the slices follow each other along."""
MOST_SLICES = 1024
_ANY_DISTANCE = (1e-3, 1e3)
"""mm between slices, where only the spacing in their plane is stated."""


def check_stated(task: Task | None, orientation: str | None, slices: int) -> None:
    """Raises SpecError where a network cannot take a volume in so many slices at once."""
    if slices < 1 or slices % 2 == 0:
        raise SpecError(f"--slices {slices}: expected 1 (a slice alone), or 3, 5, …: a slice and its neighbours")
    if task is not None and task is not Task.SEGMENTATION:
        raise SpecError(
            f"--slices is for a segmentation: a {task.value} gives one answer for a volume, and how those of its "
            "slices become one is not known. Put a module around it that takes the volume and pools them, and export "
            "that for one size (--sizes fixed); or export it for single images"
        )
    if orientation is None:
        raise SpecError(
            "--slices needs --orientation, the slices' own axis first: SPL for axial slices whose rows and columns are "
            "as in DICOM, SRA for axial slices [:, :, k] of a NIfTI file in RAS, PSL for coronal, LSP for sagittal ones"
        )


def of_slices(shape: tuple[int, ...], slices: int) -> tuple[int, int, tuple[int, ...]]:
    """`(C, H, W)` of the network, or `(C, D, H, W)` of a volume → C of a volume, D, and `(H, W)`."""
    text = ",".join(map(str, shape))
    if len(shape) == 4:
        channels, depth, *plane = shape
        return channels, depth, tuple(plane)
    if len(shape) != 3:
        raise SpecError(
            f"--input-shape {text} with --slices {slices}: expected C,H,W of the network, or C,D,H,W of a volume"
        )
    channels, *plane = shape
    if channels % slices:
        raise SpecError(
            f"--input-shape {text} with --slices {slices}: the network takes {slices} slices as its channels; state "
            f"{slices},{plane[0]},{plane[1]}, or C,D,H,W of a volume"
        )
    return channels // slices, max(3, slices), tuple(plane)


def with_slices(
    plane: Contract,
    slices: int,
    depth: int,
    maximum: tuple[int, ...] | None,
    spacing: tuple[tuple[float, float], ...] | None,
    orientation: str | None,
) -> Contract:
    """The contract of volumes, from that of one slice without neighbours.

    Args:
        maximum: of D, H, W, where D is stated.
        spacing: of all axes or of those in the plane.

    Raises ContractError.
    """
    if spacing is not None and len(spacing) == 2:
        spacing = (_ANY_DISTANCE, *spacing)
    if spacing is not None and len(spacing) != 3:
        raise SpecError(f"--spacing describes {len(spacing)} axes; a volume has 3, and its slices 2")
    most = maximum[0] if maximum is not None and len(maximum) == 3 else max(MOST_SLICES, depth)
    if most < depth:
        raise SpecError(f"--maximum {most} slices: fewer than the {depth} of --input-shape")
    return replace(
        plane,
        spatial=(SLICES, *plane.spatial),
        nominal=(depth, *plane.nominal),
        maximum=(most, *plane.maximum),
        spacing=spacing,
        orientation=orientation,
        slices=slices,
    )


def as_volumes(images: Tensor, slices: int, depth: int) -> Tensor:
    """Images of the network `[N, C·slices, H, W]` → two volumes `[2, C, depth, H, W]` made of them."""
    single = images.reshape(-1, images.shape[1] // slices, *images.shape[2:])
    numbers = torch.arange(2 * depth).reshape(2, depth) % len(single)
    return single[numbers].movedim(2, 1).contiguous()


def slices_of(contract: Contract, volumes: Tensor) -> Tensor:
    """Volumes `[N, C, D, H, W]` → the middle slice of each, with its neighbours, `[N, C·slices, H, W]`.

    Images of a contract without slices are what the network takes.
    """
    if contract.slices is None:
        return volumes
    depth = volumes.shape[2]
    around = torch.arange(contract.slices) - contract.slices // 2 + depth // 2
    return volumes[:, :, around.clamp(0, depth - 1)].flatten(1, 2)


def notes_on_slices(contract: Contract) -> tuple[str, ...]:
    """What the user of a network of slices should know."""
    if contract.slices is None:
        return ()
    of_whole = [
        step for step in contract.preprocessing.steps if isinstance(step, (ZScore, ScalePercentiles, ClipPercentiles))
    ]
    scaled = f"; {spelled(of_whole)} looks at the whole volume, not at each slice" if of_whole else ""
    return (f"takes volumes slice by slice, all under the same masks; costs and gain are those of one slice{scaled}",)
