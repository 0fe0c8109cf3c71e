"""Your own classifier from its checkpoint: inspected, exported, calibrated on folders named by class.

    python export/examples/classifier.py models

A checkpoint may be a state dict, safetensors, or what Lightning and others save; nothing of its code is run.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from equipoise_export import calibrate, export, inspect
from PIL import Image
from torch import nn

HERE = Path(__file__)


class Classifier(nn.Module):
    """Normal or bright, by the brightest spot of a smoothed image."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.drop, self.head = nn.Conv2d(1, 8, 5, padding=2), nn.Dropout(0.3), nn.Linear(8, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(torch.relu(self.features(image)).amax((2, 3))))


def train(checkpoint: Path) -> None:
    """Stands for your training."""
    model = Classifier()
    torch.manual_seed(0)
    with torch.no_grad():
        model.features.weight.copy_((1 + 0.4 * torch.randn(8, 1, 5, 5)) / 25)
        model.features.bias.zero_()
        model.head.weight.copy_(torch.tensor([[0.0], [0.6]]).expand(2, 8))
        model.head.bias.copy_(torch.tensor([0.0, -7.0]))
    torch.save({"epoch": 9, "state_dict": model.state_dict()}, checkpoint)


def labelled(folder: Path, count: int) -> None:
    """Stand for labelled pictures: FOLDER/normal/*.png and FOLDER/bright/*.png."""
    random = np.random.default_rng(0)
    for number in range(count):
        image, name = random.normal(100, 10, (32, 32)), ("normal", "bright")[number % 2]
        if name == "bright":
            image[10:18, 10:18] += 60
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")


def main(models: Path) -> None:
    models.mkdir(parents=True, exist_ok=True)
    train(models / "last.ckpt")
    labelled(models / "labelled", 120)
    network = f"{HERE}:Classifier"
    given = {
        "name": "spot", "task": "classification", "classes": ("normal", "bright"), "weights": [models / "last.ckpt"],
        "example": torch.randn(2, 1, 32, 32),
    }  # fmt: skip
    print("sites:", [site.name for site in inspect(network, **given).contract.sites])
    made = export(network, into=models, replace=True, **given)
    found = calibrate("spot", data=models / "labelled", repository=models)
    print("published", made.folder, "report", found.report)
    print(f"next: equipoise serve {models}, then: equipoise predict spot IMAGE")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
