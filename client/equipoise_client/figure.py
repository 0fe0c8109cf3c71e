"""One picture per case: what the model saw, what it said, and where it does not know.

Heat is drawn on a fixed scale, 0 to the largest value there can be (ln K nats; ln 2 per class for sigmoids), so that
two pictures compare; colour and transparency follow the value's square root, which shows small values and ties every
colour to one value all the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from equipoise_core.contract import Activation, Contract, Task
from equipoise_core.decision import Route
from equipoise_core.outline import BETWEEN, INSIDE
from equipoise_core.preprocessing import PADDING_VALUE
from numpy.typing import NDArray

from .extras import needs
from .images.outline import outline_level, outline_of
from .images.prepare import Prepared
from .prediction import Prediction

_ROUTE_COLOUR = {Route.ACCEPT: "#1a7f37", Route.REVIEW: "#b35900", Route.REJECT: "#b42318"}
_CLASS_COLOURS = ("#4cc9f0", "#f72585", "#b8f35a", "#ffd166", "#9b5de5", "#00f5d4")
_HEAT = "plasma"
_DIMMED = 1.7  # the image under the heat is drawn darker by this, so that colours stand out
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


def write_figure(path: Path, title: str, contract: Contract, prepared: Prepared, prediction: Prediction) -> None:
    """Writes a PNG. Segmentation needs the outputs `labels` and `epistemic`, classification `calibrated`, `mean`
    and `variance`, regression none.

    Args:
        title: first words of the heading; a file's name, never anything that stands in the file.
    """
    with needs("client", "drawing pictures"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure(layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    if contract.targets:
        _draw_numbers(figure, prepared, prediction)
    elif contract.task is Task.CLASSIFICATION:
        _draw_classification(figure, contract, prepared, prediction)
    else:
        _draw_segmentation(figure, contract, prepared, prediction)
    figure.suptitle(
        f"{title}  ·  {contract.name}  ·  {prediction.route.value.upper()}",
        color=_ROUTE_COLOUR[prediction.route],
        fontweight="bold",
    )
    figure.savefig(path, dpi=130)


def epistemic_limit(contract: Contract) -> float:
    """Largest mutual information there can be, in nats: the right end of the colour scale."""
    return math.log(2 if contract.activation is Activation.SIGMOID else len(contract.classes))


@dataclass(frozen=True)
class View:
    """A plane of the image, and how to lay it on paper.

    Attributes:
        fixed: axis that is cut, and the index of the cut; None for an image that is a plane already.
        across, down: axes that run along the picture's width and height.
        orientation: anatomical letters of all axes, or None: then rows run down, as in any image.
    """

    fixed: tuple[int, int] | None
    across: int
    down: int
    orientation: str | None

    def cut(self, values: NDArray[Any]) -> NDArray[Any]:
        """`[*S]` → `[height, width]`."""
        plane = values if self.fixed is None else np.take(values, self.fixed[1], axis=self.fixed[0])
        return plane if self.across > self.down else plane.T

    def dress(self, axes: Any, spacing: tuple[float, ...] | None) -> None:
        """Aspect ratio, direction and letters; radiological convention: the patient's right is on the left."""
        axes.set_xticks([])
        axes.set_yticks([])
        if spacing is not None:
            axes.set_aspect(spacing[self.down] / spacing[self.across])
        if self.orientation is None:
            return
        from matplotlib.patheffects import Normal, Stroke

        across, down = self.orientation[self.across], self.orientation[self.down]
        if across in "RA":  # the patient's right, and front, belong on the left
            left, right = across, _OPPOSITE[across]
            axes.invert_xaxis()
        else:
            left, right = _OPPOSITE[across], across
        top, bottom = (down, _OPPOSITE[down]) if down in "SA" else (_OPPOSITE[down], down)
        if down in "SA":
            axes.invert_yaxis()
        for letter, x, y in ((left, 0.03, 0.5), (right, 0.97, 0.5), (top, 0.5, 0.95), (bottom, 0.5, 0.05)):
            text = axes.text(
                x, y, letter, transform=axes.transAxes, color="white", ha="center", va="center", fontsize=9
            )
            text.set_path_effects([Stroke(linewidth=2, foreground="black"), Normal()])


def _views(contract: Contract, prepared: Prepared, heat: NDArray[Any]) -> Iterator[View]:
    if contract.rank == 2:
        yield View(None, 1, 0, None)
        return
    known = contract.orientation if prepared.source.affine is not None else None
    centre = [int(index) for index in np.unravel_index(int(np.argmax(heat)), heat.shape)]
    for cut in range(3):
        first, second = (axis for axis in range(3) if axis != cut)
        across, down = (first, second) if known else (second, first)
        yield View((cut, centre[cut]), across, down, known)


def _draw_segmentation(figure: Any, contract: Contract, prepared: Prepared, prediction: Prediction) -> None:
    from matplotlib.colors import PowerNorm
    from matplotlib.lines import Line2D

    image = grey(prepared.pixels)
    heat = prediction.epistemic.max(axis=0)
    views = list(_views(contract, prepared, heat))
    figure.set_size_inches(4.2 * max(2, len(views)) + 0.8, 9.2 if len(views) > 1 else 5.4)
    panels = figure.subplots(2, 3) if len(views) > 1 else figure.subplots(1, 2)[:, None]
    limit = epistemic_limit(contract)
    outline = outline_of(contract, prepared, prediction)
    drawn = None
    for column, view in enumerate(views):
        for row, brightest in ((0, 1.0), (1, _DIMMED)):
            panels[row, column].imshow(view.cut(image), cmap="gray", vmin=0.0, vmax=brightest, interpolation="nearest")
        _contours(panels[0, column], contract, prediction.labels, view)
        if outline is not None:
            _band(panels[0, column], outline[0], view)
        plane = view.cut(heat)
        visible = np.clip(2.5 * np.sqrt(np.clip(plane / limit, 0.0, 1.0)), 0.0, 1.0)
        drawn = panels[1, column].imshow(
            plane, cmap=_HEAT, norm=PowerNorm(0.5, 0.0, limit), alpha=visible, interpolation="nearest"
        )
        for row in (0, 1):
            view.dress(panels[row, column], prepared.spacing)
    ceiling = "ln 2" if contract.activation is Activation.SIGMOID else f"ln {len(contract.classes)}"
    bar = figure.colorbar(drawn, ax=panels, shrink=0.6 if len(views) > 1 else 0.85, pad=0.02)
    bar.set_label(f"epistemic uncertainty, nats (fixed scale, 0 to {ceiling})")
    bar.solids.set_alpha(1.0)
    lines = [
        Line2D([], [], color=class_colour(n), label=contract.classes[k]) for n, k in enumerate(contract.foreground)
    ]
    if outline is not None:
        words = f"true outline between these in {outline_level(prediction):.0%} of cases"
        lines.append(Line2D([], [], color="white", linestyle=":", label=words))
    panels[0, 0].legend(handles=lines, loc="upper left", fontsize=8, framealpha=0.6)
    if len(views) > 1:
        panels[1, 1].set_title("slices through the most uncertain voxel", fontsize=9)
    figure.supxlabel(_caption(prediction), fontsize=9)


def _show_whole(axes: Any, prepared: Prepared) -> None:
    """The image as its file has it; of a volume the middle slice of the last axis."""
    image = grey(prepared.source.pixels)
    plane = image[..., image.shape[-1] // 2] if image.ndim == 3 else image
    axes.imshow(plane, cmap="gray", vmin=0.0, vmax=1.0)
    View(None, 1, 0, None).dress(axes, prepared.source.spacing)


def _draw_classification(figure: Any, contract: Contract, prepared: Prepared, prediction: Prediction) -> None:
    figure.set_size_inches(9.4, 5.2)
    left, right = figure.subplots(1, 2)
    _show_whole(left, prepared)
    means, stated = prediction.mean, prediction.calibrated
    recalibrated = not np.allclose(means, stated, atol=5e-4)
    spread = np.sqrt(np.maximum(prediction.variance, 0.0))
    places = np.arange(len(contract.classes))
    right.barh(places, stated, color="#8fb8de", height=0.55)
    right.errorbar(means, places, xerr=spread, fmt="o" if recalibrated else "none", color="#222222", capsize=4)
    right.set_yticks(places, contract.classes)
    right.invert_yaxis()
    right.set_xlim(0.0, 1.0)
    dots = "; dots: the samples' mean" if recalibrated else ""
    right.set_xlabel(f"probability{', recalibrated' if recalibrated else ''}{dots}; whiskers: sd over samples")
    right.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(_caption(prediction), fontsize=9)


def _draw_numbers(figure: Any, prepared: Prepared, prediction: Prediction) -> None:
    values = prediction.values or {}
    figure.set_size_inches(9.4, 5.2)
    left, right = figure.subplots(1, 2)
    _show_whole(left, prepared)
    right.axis("off")
    lines = [f"{name}\n{value}" for name, value in values.items()]
    right.text(0.05, 0.5, "\n\n".join(lines), fontsize=15, verticalalignment="center", transform=right.transAxes)
    figure.supxlabel(_caption(prediction), fontsize=9)


def _contours(axes: Any, contract: Contract, labels: NDArray[np.uint8], view: View) -> None:
    """The outline of each foreground class."""
    for number, k in enumerate(contract.foreground):
        mask = labels[0] == k if contract.activation is Activation.SOFTMAX else labels[k] > 0
        plane = view.cut(mask)
        if plane.any() and not plane.all():
            axes.contour(plane.astype(float), levels=[0.5], colors=[class_colour(number)], linewidths=1.2)


def _band(axes: Any, outline: NDArray[np.uint8], view: View) -> None:
    """The two masks between which the true outline lies, dotted."""
    for least in (BETWEEN, INSIDE):
        plane = view.cut(outline >= least)
        if plane.any() and not plane.all():
            axes.contour(plane.astype(float), levels=[0.5], colors="white", linewidths=0.8, linestyles=":")


def class_colour(number: int) -> str:
    """Of the foreground class of that number, counted from 0."""
    return _CLASS_COLOURS[number % len(_CLASS_COLOURS)]


def grey(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """`[C, *S]` → `[*S]`, 0..1 between the 1st and 99th percentile, padding black: for looking only."""
    values = pixels.mean(axis=0)
    low, high = np.percentile(values[(pixels != PADDING_VALUE).all(axis=0)], [1.0, 99.0])
    return np.asarray(np.clip((values - low) / max(float(high - low), 1e-12), 0.0, 1.0), np.float32)


def _caption(prediction: Prediction) -> str:
    volume = prediction.volume
    drawn = f"{prediction.samples_used} samples" if prediction.samples_used else "first pass"
    parts = [prediction.reason, f"case score {prediction.case_score:.4f}, {drawn}"]
    if volume is not None and math.isfinite(volume.total.mean):
        total = volume.total
        parts.append(f"total {total.mean:.3g} mL ({total.low:.3g} to {total.high:.3g})")
    return "\n".join((parts[0], "  ·  ".join(parts[1:]), "for research; not a medical device"))
