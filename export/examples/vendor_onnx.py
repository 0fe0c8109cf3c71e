"""A vendor's ONNX file without dropout: dropout is put behind a tensor of it, and it is exported.

    python export/examples/vendor_onnx.py models

Dropout that was not there in training says how stable an answer is, not how likely it is right: calibrate before use.
"""

import sys
import warnings
from pathlib import Path

import torch
from equipoise_export import ExportError, Options, export
from torch import nn


def vendor_file(path: Path) -> Path:
    """Stands for the file that was delivered."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16 * 16, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network.eval(), (torch.zeros(1, 1, 16, 16),), str(path), dynamo=False, verbose=False)
    return path


def main(models: Path) -> None:
    models.mkdir(parents=True, exist_ok=True)
    file = vendor_file(models / "vendor.onnx")
    given = {"name": "vendor", "task": "classification", "classes": ("a", "b", "c"), "into": models, "replace": True}
    example = torch.randn(2, 1, 16, 16)
    try:  # a wrong name: the refusal lists the tensors behind which dropout can be put
        export(file, example=example, options=Options(dropout_at="which?", p=0.1), **given)
    except ExportError as error:
        print(error)
    made = export(file, example=example, options=Options(dropout_at="*Relu*", p=0.1), **given)
    print("published", made.folder, "with", [(site.name, site.p) for site in made.contract.sites])
    print("next: equipoise calibrate vendor --data LABELLED --repository", models)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
