"""Your own segmentation network: exported, calibrated on labelled cases, ready to be served.

    python export/examples/segmentation.py models

Replace `network` by yours with its weights, `images` by pictures normalised as in training, `cases.npz` by a folder
with images/ and labels/.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from equipoise_export import calibrate, export
from torch import nn


def network() -> nn.Module:
    """Stands for a trained one: smooths, and calls bright what stands out."""
    torch.manual_seed(0)
    smooth, head = nn.Conv2d(1, 8, 5, padding=2), nn.Conv2d(8, 2, 1)
    with torch.no_grad():
        smooth.weight.copy_((1 + 0.4 * torch.randn(8, 1, 5, 5)) / 25)
        smooth.bias.zero_()
        head.weight.copy_(torch.tensor([0.0, 0.75]).reshape(2, 1, 1, 1).expand(2, 8, 1, 1))
        head.bias.copy_(torch.tensor([0.0, -7.0]))
    return nn.Sequential(smooth, nn.ReLU(), nn.Dropout2d(0.3), head)


def cases(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Stand for labelled images: bright discs on noise `[n, 32, 32]`, and their masks."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:32, :32]
    images, masks = [], []
    for _ in range(count):
        row, column, radius = random.integers(8, 24), random.integers(8, 24), random.integers(3, 7)
        mask = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
        images.append(random.normal(0, 0.5, (32, 32)) + 3 * mask)
        masks.append(mask)
    return np.array(images, np.float32), np.array(masks, np.uint8)


def main(models: Path) -> None:
    images, masks = cases(90)
    made = export(
        network(), name="lesion", into=models, replace=True, task="segmentation", classes=("background", "lesion"),
        example=images[:2, None], normalisation="identity", spacing=((0.9, 1.1), (0.9, 1.1)),
    )  # fmt: skip
    print("published", made.folder, "with the sites", [site.name for site in made.contract.sites])
    np.savez(models / "cases.npz", images=images, masks=masks, spacing=np.ones(2))
    found = calibrate("lesion", data=models / "cases.npz", repository=models, acceptable_dice=0.7)
    print("report:", found.report)
    print(f"next: equipoise serve {models}, then: equipoise predict lesion IMAGE")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
