"""Your own regression: a network that answers a number and the logarithm of its variance, with intervals and routes.

    python export/examples/regression.py models

Of the cases that are accepted, at most 10 % are further than 1 mm from the truth, with confidence 90 %.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import torch
from equipoise_export import Answers, Options, calibrate, export
from PIL import Image
from torch import nn

SIZE, TOLERANCE = 32, 1.0


class Diameter(nn.Module):
    """A disc's diameter in mm: `[N, 2]`, mean and log variance."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 5, 2, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten()
        )
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(16 * (SIZE // 4) ** 2, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        mean, log_variance = self.head(self.features(image)).chunk(2, 1)
        return torch.cat([15 + 5 * mean, log_variance], 1)


def discs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Stand for your images: pictures `[n, SIZE, SIZE]` of 1 mm pixels, half of them noisy; diameters `[n]` in mm."""
    random = np.random.default_rng(seed)
    diameters = random.uniform(8, 24, count)
    rows, columns = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    inside = np.hypot(rows, columns) <= diameters[:, None, None] / 2
    noise = random.normal(0, 1, inside.shape) * np.where(random.random(count) < 0.5, 10, 90)[:, None, None]
    return (60 + 100 * inside + noise).clip(0, 255).astype(np.uint8), diameters


def train() -> nn.Module:
    """Stands for your training: a Gaussian likelihood (Nix & Weigend 1994)."""
    torch.manual_seed(0)
    network, loss = Diameter().train(), nn.GaussianNLLLoss()
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    images, diameters = (torch.from_numpy(each).float() for each in discs(2000, 0))
    for _ in range(12):
        for batch in torch.randperm(len(images)).split(64):
            mean, log_variance = network(images[batch, None] / 255).chunk(2, 1)
            optimiser.zero_grad()
            loss(mean[:, 0], diameters[batch], log_variance[:, 0].exp()).backward()
            optimiser.step()
    return network


def labelled(folder: Path, count: int) -> None:
    """Stand for labelled cases: FOLDER/*.png and FOLDER/cases.csv with the columns file and diameter."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "cases.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "diameter"])
        for number, (image, diameter) in enumerate(zip(*discs(count, 1), strict=True)):
            Image.fromarray(image).save(folder / f"{number}.png")
            table.writerow([f"{number}.png", f"{diameter:.2f}"])


def main(models: Path) -> None:
    labelled(models / "labelled", 160)
    made = export(
        train(), into=models, name="disc", task="regression", targets=("diameter:mm",), preprocess="divide:255",
        example=torch.rand(2, 1, SIZE, SIZE), options=Options(answers=Answers.MEAN_LOG_VARIANCE), replace=True,
    )  # fmt: skip
    found = calibrate("disc", data=models / "labelled", repository=models, tolerance=TOLERANCE)
    print(found.why)
    print("published", made.folder, "report", found.report)
    print(f"next: equipoise serve {models}, then: equipoise predict disc IMAGE")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
