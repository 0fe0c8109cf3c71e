"""A case in pictures: the image, the label, the answer and where it differs, and where the model is unsure."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from equipoise_core.assessment import Assessment
from equipoise_core.contract import Activation, Contract, Task
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import NDArray

from ..cases import Labelled

_SIZE = 2.9  # inches along the longer side
_DPI = 120
_DIFFERS = (1.0, 0.15, 0.1, 0.45)
_THICK = 2.0  # slices thicker than this many pixels are wide: the volume is cut along them
_COLOUR_CHANNELS = 3


@dataclass(frozen=True)
class Panel:
    """One picture: its caption, and a `data:` URI."""

    caption: str
    uri: str


def draw(case: Labelled, answer: Assessment) -> list[Panel]:
    """The panels of one case; of a volume the slice where label and answer differ most, or that shows most."""
    contract = answer.model.contract
    drawing = import_module("equipoise_client.figure")  # found by name: neither package imports the other
    if contract.task is not Task.SEGMENTATION:
        nothing = np.zeros(case.image.shape[1:], bool)
        view, where = _view(drawing, case, nothing, nothing)
        return [_panel(f"Image{where}", view, _looked_at(drawing, case, view), case)]
    sizes = case.image.shape[1:]
    truth, labels = (regions(contract, each, sizes) for each in (case.truth, answer.uncertainty.labels))
    differs = (truth != labels).any(axis=0)
    view, where = _view(drawing, case, differs, truth.any(axis=0) | labels.any(axis=0))
    image = _looked_at(drawing, case, view)
    colours = [drawing.class_colour(n) for n in range(len(truth))]
    unsure, limit, of = _unsure(contract, answer, drawing)

    def outlined(masks: NDArray[np.bool_]) -> list[tuple[NDArray[np.bool_], str]]:
        return [(view.cut(mask), colour) for mask, colour in zip(masks, colours, strict=True)]

    return [
        _panel(f"Image{where}", view, image, case),
        _panel("Label by the expert", view, image, case, outlined(truth)),
        _panel("Answer; red: differs from the label", view, image, case, outlined(labels), differs=view.cut(differs)),
        _panel(f"Unsure: {of}", view, image * 0.6, case, heat=(view.cut(unsure), limit)),
    ]


def regions(contract: Contract, labels: NDArray[np.uint8], sizes: tuple[int, ...]) -> NDArray[np.bool_]:
    """Voxels of each foreground class `[F, *S]`, of a truth or an answer: indices `[*S]` or `[1, *S]` (softmax), or 0
    and 1 per class `[K, *S]` (sigmoid)."""
    if contract.activation is Activation.SIGMOID:
        return np.asarray(labels > 0)
    return np.stack([labels.reshape(sizes) == k for k in contract.foreground])


def legend(contract: Contract) -> list[tuple[str, str]]:
    """(class, colour of its outline)."""
    colour = import_module("equipoise_client.figure").class_colour
    return [(contract.classes[k], colour(n)) for n, k in enumerate(contract.foreground)]


def _unsure(contract: Contract, answer: Assessment, drawing: Any) -> tuple[NDArray[np.float32], float, str]:
    """Map `[*S]`, its largest possible value in nats, and what it is in words."""
    epistemic = answer.spread.epistemic.max(axis=0)
    limit = float(drawing.epistemic_limit(contract))
    if np.isfinite(epistemic).all() and epistemic.any():
        return epistemic, limit, "where samples disagree"
    return answer.uncertainty.total.max(axis=0), limit, "where classes are nearly as probable"


def _view(drawing: Any, case: Labelled, differs: NDArray[np.bool_], shown: NDArray[np.bool_]) -> tuple[Any, str]:
    """A plane of the image, and its number in words.

    A volume is cut across the axis whose slices show most of what is `shown`, or along its slices where they are thick;
    of those the slice where label and answer differ most, or that shows most, or the middle one.
    """
    if differs.ndim == 2:
        return drawing.View(None, 1, 0, None), ""
    spacing = case.spacing or (1.0,) * differs.ndim
    coarsest = int(np.argmax(spacing))
    thick = spacing[coarsest] >= _THICK * min(spacing)
    across = {axis: tuple(a for a in range(3) if a != axis) for axis in ((coarsest,) if thick else (2, 1, 0))}
    axis = max(across, key=lambda each: int(shown.sum(axis=across[each]).max()))
    count = (differs if differs.any() else shown).sum(axis=across[axis])
    index = int(count.argmax()) if count.any() else len(count) // 2
    first, second = across[axis] if case.orientation else reversed(across[axis])
    return drawing.View((axis, index), first, second, case.orientation), f", slice {index + 1} of {len(count)}"


def _looked_at(drawing: Any, case: Labelled, view: Any) -> NDArray[np.float32]:
    """The plane `[height, width]`, or `[height, width, 3]` of a picture in colour; 0..1."""
    if len(case.image) != _COLOUR_CHANNELS or case.image.ndim != 3:
        return np.asarray(view.cut(drawing.grey(case.image)))
    low, high = np.percentile(case.image, [0.5, 99.5])
    return np.asarray(np.clip((case.image - low) / max(float(high - low), 1e-12), 0.0, 1.0).transpose(1, 2, 0))


def _panel(
    caption: str,
    view: Any,
    image: NDArray[np.float32],
    case: Labelled,
    outlines: Sequence[tuple[NDArray[np.bool_], str]] = (),
    differs: NDArray[np.bool_] | None = None,
    heat: tuple[NDArray[np.float32], float] | None = None,
) -> Panel:
    spacing = case.spacing if case.spacing and len(case.spacing) > max(view.across, view.down) else None
    down, across = (spacing[view.down], spacing[view.across]) if spacing else (1.0, 1.0)
    height, width = image.shape[0] * down, image.shape[1] * across
    longest = max(height, width)
    figure = Figure(figsize=(max(0.3, _SIZE * width / longest), max(0.3, _SIZE * height / longest)), facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(image, cmap="gray", vmin=0.0, vmax=1.0, interpolation="bilinear")
    if differs is not None:
        axes.imshow(differs[..., None] * np.array(_DIFFERS), interpolation="nearest")
    if heat is not None:
        plane, limit = heat
        visible = np.clip(2.5 * np.sqrt(np.clip(plane / limit, 0.0, 1.0)), 0.0, 1.0)
        axes.imshow(plane, cmap="plasma", norm=PowerNorm(0.5, 0.0, limit), alpha=visible, interpolation="nearest")
    for mask, colour in outlines:
        if mask.any() and not mask.all():
            drawn = axes.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=1.3)
            drawn.set_path_effects([Stroke(linewidth=2.6, foreground="black"), Normal()])
    axes.axis("off")
    view.dress(axes, case.spacing)
    stream = io.BytesIO()
    figure.savefig(stream, format="webp", dpi=_DPI, pil_kwargs={"quality": 88})
    return Panel(caption, f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}")
