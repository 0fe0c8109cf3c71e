"""A MONAI bundle: its network, weights, classes, sizes and preprocessing are read from its own files.

    python export/examples/monai_bundle.py path/to/bundle models

MONAI must be installed. What the bundle does not state, or does to intensities beyond what Equipoise does, the refusal
names.
"""

import sys
from pathlib import Path

from equipoise_export import export


def main(bundle: Path, models: Path) -> None:
    made = export(bundle, into=models, replace=True, name=bundle.name)
    contract = made.contract
    print("published", made.folder, contract.classes, contract.nominal, contract.preprocessing)
    for note in made.notes:
        print("note:", note)
    print(f"next: equipoise calibrate {contract.name} --data LABELLED --repository {models}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
