"""What choosing the images to label saves: Dice against labels, by `equipoise rank`'s order and at random.

    python -m tests.benchmarks.bench_active_learning [--repeats 3] [--quick] [--json F] [--plot F]

Nuclei, pool = the training split: a few labelled images to begin with, and more in every round. In a repeat all
strategies share the test split, the first images, and in each round the seed of the training, which starts anew. The
order is the shipped one (`equipoise_lab.rank`), on scores and statistics that `equipoise_core` computes from passes
of the network under dropout. To fit into minutes of one core, the network is half as wide as the reference model and
sees images at half their resolution; random crops cover 128 × 128 pixels of the original.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("export", "client", "model_repository/hippocampus/1")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from equipoise_core.contract import Contract, load_contract  # noqa: E402
from equipoise_core.moments import moments_of_map  # noqa: E402
from equipoise_core.scores import rim_epistemic  # noqa: E402
from equipoise_core.statistics import input_statistics, prediction_statistics  # noqa: E402
from equipoise_core.uncertainty import Uncertainty  # noqa: E402
from equipoise_export.calibration.metrics import dice  # noqa: E402
from equipoise_lab.rank.order import Unlabelled, rank_images  # noqa: E402
from equipoise_lab.reference.data import load, reference_split  # noqa: E402
from equipoise_lab.reference.evaluate import dropout_layers  # noqa: E402
from equipoise_lab.reference.networks import UNet  # noqa: E402
from equipoise_lab.reference.specs import NUCLEI  # noqa: E402
from equipoise_lab.reference.training import loss_of  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: E402
from rich.table import Table  # noqa: E402
from scipy.stats import t as student  # noqa: E402
from torch import nn  # noqa: E402

CONTRACT: Contract = load_contract(ROOT / "model_repository" / "nuclei" / "1" / "contract.json")


@dataclass(frozen=True)
class Plan:
    """How large the study is.

    Attributes:
        first, step, last: labelled images at the beginning, further ones per round, all at the end.
        steps, batch, crop: of each training; pixels at half resolution.
        samples: T, passes under dropout for a score.
        tests: test images; None: all.
    """

    repeats: int = 3
    first: int = 8
    step: int = 8
    last: int = 40
    steps: int = 300
    batch: int = 4
    crop: int = 64
    samples: int = 8
    tests: int | None = None

    @property
    def budgets(self) -> list[int]:
        return list(range(self.first, self.last + 1, self.step))


QUICK = Plan(repeats=2, last=24, steps=40, samples=4, tests=10)


@dataclass(frozen=True, eq=False)
class Images:
    """Normalised images `[n, 1, H, W]` float32 at half resolution, their truth `[n, H, W]`, and their statistics."""

    images: NDArray[np.float32]
    truth: NDArray[np.uint8]
    statistics: tuple[Mapping[str, float], ...]


def halved(array: NDArray[Any]) -> NDArray[np.float32]:
    """Means of 2 × 2 pixels of the last two axes."""
    rows, columns = array.shape[-2:]
    return array.reshape(*array.shape[:-2], rows // 2, 2, columns // 2, 2).mean(axis=(-3, -1), dtype=np.float32)


def prepared(ids: Sequence[str]) -> Images:
    cases = load("nuclei").select(ids)
    images = np.stack([CONTRACT.preprocessing.normalise(halved(image)) for image in cases.images])
    truth = np.stack([(halved(target > 0) >= 0.5).astype(np.uint8) for target in cases.targets])
    return Images(images, truth, tuple(input_statistics(image) for image in images))


def trained(pool: Images, labelled: Sequence[int], plan: Plan, seed: int) -> nn.Module:
    """A fresh network fitted to the labelled images: random crops, turned, mirrored, in other contrast."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    network = UNet(rank=2, classes=1, encoder=(8, 16, 32, 64), decoder=(8, 16, 32), dropout=0.2).train()
    network.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=plan.steps + 1, pct_start=0.2)
    for _ in range(plan.steps):
        crops = [cropped(pool, index, plan.crop, random) for index in random.choice(labelled, plan.batch)]
        images = torch.from_numpy(np.stack([image for image, _ in crops]))
        truth = torch.from_numpy(np.stack([target for _, target in crops]).astype(np.int64))
        logits = network(images.contiguous(memory_format=torch.channels_last))
        loss = loss_of(logits, truth, NUCLEI.activation, dice_weight=0.25)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
    return network.eval()


def cropped(
    pool: Images, index: int, size: int, random: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    top, left = (int(random.integers(length - size + 1)) for length in pool.truth.shape[1:])
    inside = (..., slice(top, top + size), slice(left, left + size))
    turns, mirrored = int(random.integers(4)), bool(random.integers(2))

    def turned(array: NDArray[Any]) -> NDArray[Any]:
        array = np.rot90(array[inside], turns, axes=(-2, -1))
        return np.ascontiguousarray(array[..., ::-1] if mirrored else array)

    gain, shift = random.uniform(0.7, 1.3), random.uniform(-0.1, 0.1)
    return (turned(pool.images[index]) * gain + shift).astype(np.float32), turned(pool.truth[index])


@torch.inference_mode()
def dice_of(network: nn.Module, test: Images) -> list[float]:
    """Of each test image, by one pass without dropout."""
    found = []
    for image, truth in zip(test.images, test.truth, strict=True):
        predicted = (network(torch.from_numpy(image)[None])[0, 0] >= 0).numpy().astype(np.uint8)
        found.append(dice(predicted == 1, truth == 1))
    return found


@torch.inference_mode()
def answers(network: nn.Module, pool: Images, rows: Sequence[int], samples: int) -> dict[int, Unlabelled]:
    """What a server's records would say of these images: epistemic score and statistics, from T passes each."""
    for layer in dropout_layers(network):
        layer.train()
    found = {}
    for row in rows:
        passes = network(torch.from_numpy(pool.images[row])[None].repeat(samples, 1, 1, 1)).sigmoid().numpy()
        moments = reduce(add, (moments_of_map(each, CONTRACT.activation) for each in passes))
        seen = Uncertainty(moments, CONTRACT.activation)
        features = {**pool.statistics[row], **prediction_statistics(CONTRACT, seen.mean)}
        found[row] = Unlabelled(f"{row:04d}", rim_epistemic(CONTRACT, seen), features)
    network.eval()
    return found


Choose = Callable[[nn.Module, Images, list[int], list[int], Plan, int], list[int]]
"""Network, pool, labelled rows, other rows, plan and seed → the rows to label next."""


def at_random(_: nn.Module, __: Images, ___: list[int], free: list[int], plan: Plan, seed: int) -> list[int]:
    return [int(row) for row in np.random.default_rng(seed).permutation(free)[: plan.step]]


def by_rank(diverse: bool) -> Choose:
    def choose(
        network: nn.Module, pool: Images, labelled: list[int], free: list[int], plan: Plan, seed: int
    ) -> list[int]:
        torch.manual_seed(seed)
        known = answers(network, pool, [*labelled, *free], plan.samples)
        ranking = rank_images(
            [known[row] for row in free],
            plan.step,
            None if diverse else plan.step,
            [known[row].features for row in labelled] if diverse else (),
        )
        return [int(each.image.name) for each in ranking if each.proposed]

    return choose


STRATEGIES: dict[str, Choose] = {
    "random": at_random,
    "epistemic": by_rank(diverse=False),
    "epistemic + diversity": by_rank(diverse=True),
}


Curves = dict[str, NDArray[np.float64]]
"""Strategy → Dice `[repeats, rounds, test images]`, or a summary over the images `[repeats, rounds]`."""

SUMMARIES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "mean": lambda dice: dice.mean(axis=-1),
    "worst tenth": lambda dice: np.sort(dice, axis=-1)[..., : -(-dice.shape[-1] // 10)].mean(axis=-1),
}
"""Of the Dice of all test images: what most of them are like, and the few that are unlike the rest of the pool."""


def study(plan: Plan, progress: Progress) -> tuple[Curves, NDArray[np.float64]]:
    """Dice by strategy, and with the whole pool labelled `[repeats, test images]`."""
    parts = reference_split("nuclei", load("nuclei").ids)
    pool, test = prepared(parts.train), prepared(parts.test[: plan.tests])
    every = list(range(len(pool.truth)))
    curves: dict[str, list[list[list[float]]]] = {name: [] for name in STRATEGIES}
    ceiling = []
    total = plan.repeats * (2 + len(STRATEGIES) * (len(plan.budgets) - 1))
    bar = progress.add_task("trainings", total=total)
    for repeat in range(plan.repeats):
        seeds = {budget: 1000 * repeat + budget for budget in plan.budgets}
        start = [int(row) for row in np.random.default_rng(repeat).permutation(every)[: plan.first]]
        first = trained(pool, start, plan, seeds[plan.first])
        at_first = dice_of(first, test)
        progress.advance(bar)
        for name, choose in STRATEGIES.items():
            labelled, network, curve = list(start), first, [at_first]
            for budget in plan.budgets[1:]:
                free = [row for row in every if row not in labelled]
                labelled += choose(network, pool, labelled, free, plan, seeds[budget])
                network = trained(pool, labelled, plan, seeds[budget])
                curve.append(dice_of(network, test))
                progress.advance(bar)
            curves[name].append(curve)
            progress.console.print(f"repeat {repeat}  {name:22s}", "  ".join(f"{np.mean(dice):.4f}" for dice in curve))
        ceiling.append(dice_of(trained(pool, every, plan, 1000 * repeat), test))
        progress.advance(bar)
    return {name: np.array(of) for name, of in curves.items()}, np.array(ceiling)


def labels_until(curve: Sequence[float], budgets: Sequence[int], target: float) -> float:
    """Labels from which on the curve stays at `target` or above, linear between rounds; NaN where it ends below.

    Not where it first gets there: a curve that jitters gets there by luck, and falls again.
    """
    below = [k for k, dice in enumerate(curve) if dice < target]
    if not below:
        return float(budgets[0])
    last = below[-1]
    if last == len(curve) - 1:
        return float("nan")
    share = (target - curve[last]) / (curve[last + 1] - curve[last])
    return budgets[last] + share * (budgets[last + 1] - budgets[last])


@dataclass(frozen=True)
class Estimate:
    """Mean over repeats, and its 95 % interval by Student's t; None where it cannot be given."""

    mean: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.mean is None:
            return "–"
        return f"{self.mean:.4g}" + ("" if self.low is None else f" ({self.low:.4g} to {self.high:.4g})")


def estimate(values: Sequence[float]) -> Estimate:
    if not np.isfinite(values).all():
        return Estimate(None, None, None)
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, None, None)
    half = float(student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Estimate(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Finding:
    """A strategy in figures.

    Attributes:
        dice: mean over repeats at each number of labels; `spread`: standard deviation.
        gain: mean over all rounds but the first of Dice less random's in the same repeat.
        labels: per repeat until the Dice of random with all its labels; None: not reached, or not kept.
        saved: `last` less these, where every repeat got there.
    """

    strategy: str
    dice: list[float]
    spread: list[float]
    gain: Estimate
    labels: list[float | None]
    saved: Estimate


def findings(plan: Plan, curves: Curves) -> list[Finding]:
    targets = curves["random"][:, -1]
    found = []
    for name, table in curves.items():
        labels = [labels_until(curve, plan.budgets, target) for curve, target in zip(table, targets, strict=True)]
        gains = (table - curves["random"])[:, 1:].mean(axis=1)
        found.append(
            Finding(
                name,
                table.mean(axis=0).tolist(),
                (table.std(axis=0, ddof=1) if len(table) > 1 else np.zeros(table.shape[1])).tolist(),
                estimate(gains),
                [None if np.isnan(count) else count for count in labels],
                estimate([plan.last - count for count in labels]),
            )
        )
    return found


def shown(plan: Plan, what: str, found: Sequence[Finding], ceiling: NDArray[np.float64]) -> Table:
    table = Table(
        "strategy",
        *(f"{budget} labels" for budget in plan.budgets),
        "Dice over random's",
        "labels until random's last Dice",
        "labels saved",
        title=f"nuclei, Dice ({what}) ± sd over {plan.repeats} repeats; all labels: {ceiling.mean():.4f}",
    )
    for each in found:
        dice = [f"{mean:.4f} ± {sd:.4f}" for mean, sd in zip(each.dice, each.spread, strict=True)]
        needed = ", ".join("not kept" if count is None else f"{count:.1f}" for count in each.labels)
        table.add_row(each.strategy, *dice, str(each.gain), needed, str(each.saved))
    return table


def draw(path: Path, plan: Plan, curves: Curves, ceiling: NDArray[np.float64]) -> None:
    """Dice against labels: one thin line a repeat, the mean over them thick; a panel for each summary."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (what, summary) in zip(figure.subplots(1, len(SUMMARIES)), SUMMARIES.items(), strict=True):
        for (name, of), colour in zip(curves.items(), ("#6b7280", "#b35900", "#1a7f37"), strict=True):
            axes.plot(plan.budgets, summary(of).T, color=colour, alpha=0.3, linewidth=0.8)
            axes.plot(plan.budgets, summary(of).mean(axis=0), color=colour, linewidth=2.2, marker="o", label=name)
        axes.axhline(summary(ceiling).mean(), color="#111111", linestyle=":", linewidth=1, label="all labels")
        axes.set_title(f"Dice of the test images, {what}", fontsize=10)
        axes.set_xlabel("labelled images")
        axes.set_xticks(plan.budgets)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, help=f"default: {Plan.repeats}")
    for name in ("first", "step", "last"):
        parser.add_argument(f"--{name}", type=int, help=f"labelled images; default: {getattr(Plan, name)}")
    parser.add_argument("--quick", action="store_true", help="a minute, for trying; its figures mean nothing")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "active_learning.json", help="figures")
    parser.add_argument("--plot", type=Path, default=ROOT / "build" / "active_learning.png", help="PNG")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plan = QUICK if options.quick else Plan()
    named = {name: getattr(options, name) for name in ("repeats", "first", "step", "last")}
    plan = replace(plan, **{name: value for name, value in named.items() if value})
    console = Console(width=None if sys.stdout.isatty() else 220)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    begun = time.monotonic()
    with Progress(*columns, console=console) as progress:
        curves, ceiling = study(plan, progress)
    seconds = time.monotonic() - begun
    draw(options.plot, plan, curves, ceiling)
    document: dict[str, Any] = {"plan": asdict(plan), "labels": plan.budgets, "seconds": round(seconds)}
    for what, summary in SUMMARIES.items():
        table = {name: summary(of) for name, of in curves.items()}
        found = findings(plan, table)
        console.print(shown(plan, what, found, summary(ceiling)))
        document[what] = {
            "curves": {name: of.tolist() for name, of in table.items()},
            "all_labels": summary(ceiling).tolist(),
            "findings": [asdict(each) for each in found],
        }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    console.print(f"{seconds:.0f} s; figures in {options.json}, curves in {options.plot}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
