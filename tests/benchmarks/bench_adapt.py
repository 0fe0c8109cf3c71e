"""A model moves to another site: what images alone say of it, and after how many labels `accept` opens there.

    python -m tests.benchmarks.bench_adapt [NAMES …] [--folder DIR] [--json FILE]

Each model is calibrated on the calibration split and then adapted to sites made of the test split: as it is, and with
images of another kind (noise, blur, for nuclei H&E-stained tissue; pneumonia's test split is the publisher's validation
set). Half of each site's cases, or 40, come without labels, the others with labels in three calls. Where there are
volumes, their intervals at the other site and at this one are compared with the truth of all cases.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from equipoise_core.loading import load_model
from equipoise_core.volume import widened
from equipoise_export import adapt, calibrate
from equipoise_export.adaptation.adapt import AdaptedSite
from equipoise_export.adaptation.decide import images_needed
from equipoise_export.calibration.calibrate import measure_all
from equipoise_export.calibration.choose import serve
from equipoise_export.calibration.corruptions import blurred, gaussian, rician
from equipoise_export.calibration.reading import labelled_cases
from equipoise_lab.reference.build import goals, spacing_of, truth_of
from equipoise_lab.reference.data import REPOSITORY, Dataset, load, load_shifted_nuclei, reference_split
from equipoise_lab.reference.specs import REFERENCES
from rich.console import Console
from rich.table import Table

CALLS = 3
SHIFTS: dict[str, dict[str, Callable[[Any, np.random.Generator], Any]]] = {
    "hippocampus": {"noise .1": lambda x, r: rician(x, 0.1, r), "noise .3": lambda x, r: rician(x, 0.3, r)},
    "nuclei": {"noise .1": lambda x, r: gaussian(x, 0.1, r), "blur 1.5": lambda x, r: blurred(x, 1.5)},
    "pneumonia": {"noise .2": lambda x, r: gaussian(x, 0.2, r), "blur .7": lambda x, r: blurred(x, 0.7)},
}


def sites(name: str, test: Dataset) -> Iterator[tuple[str, Dataset]]:
    """(its name, its cases)."""
    yield "test split", test
    for what, change in SHIFTS[name].items():
        random = np.random.default_rng(0)
        yield what, Dataset(test.ids, tuple(change(image, random) for image in test.images), test.targets)
    if name == "nuclei":
        yield "H&E", load_shifted_nuclei()


def written(folder: Path, name: str, cases: Dataset) -> Path:
    """The cases as a user has them: NIfTI files, or one archive."""
    if REFERENCES[name].spacing is None:
        folder.mkdir(parents=True, exist_ok=True)
        truths = np.stack([truth_of(REFERENCES[name], target) for target in cases.targets])
        np.savez(folder / "cases.npz", images=np.stack(cases.images), labels=truths, ids=np.array(cases.ids))
        return folder / "cases.npz"
    affine = np.diag([*(spacing_of(REFERENCES[name]) or ()), 1.0])
    for kind, arrays in (("images", [image[0] for image in cases.images]), ("labels", cases.targets)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for case, array in zip(cases.ids, arrays, strict=True):
            nibabel.save(nibabel.Nifti1Image(np.asarray(array), affine), folder / kind / f"{case}.nii.gz")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(REFERENCES))
    parser.add_argument("--folder", type=Path, help="keep models, data and reports there")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        report = [row for name in options.names for row in rows_of(name, options.folder or Path(scratch))]
    shown = Table("model", "site", "told apart", "worth", "expected error", "labels", "accepted", "wrong", "open")
    for where in ("elsewhere", "here"):
        shown.add_column(f"covered, {where}")
    for row in report:
        values = [*row.values()]
        shown.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in values))
    Console().print(shown)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def rows_of(name: str, root: Path) -> Iterator[dict[str, Any]]:
    """One row for each site and call."""
    reference, data = REFERENCES[name], load(name)
    split, repository = reference_split(name, data.ids), root / "models"
    for folder in (REPOSITORY / "model_repository").glob(f"{name}*"):
        if folder.is_dir():
            shutil.copytree(folder, repository / folder.name, symlinks=False, dirs_exist_ok=True)
    wanted = goals(reference)
    given = written(root / name / "calibration", name, data.select(split.calibration))
    calibrate(
        name, data=given, repository=repository, alpha=wanted.alpha, acceptable_dice=reference.acceptable_dice or 0.8,
        stages=reference.stages, method=wanted.method, progress=True, pilot=0.3,
    )  # fmt: skip
    for site, cases in sites(name, data.select(split.test)):
        folder = root / name / site.replace(" ", "-").replace("&", "")
        shutil.rmtree(folder, ignore_errors=True)
        half = max(images_needed(0.05), len(cases) // 2)
        images = written(folder / "unlabelled", name, cases.select(cases.ids[:half]))
        found = adapt(name, repository=repository, folder=folder / "site", site=site, data=images, progress=True)
        yield {**row(name, site, found.document()), **coverage(name, repository, folder, cases, found)}
        for call, ids in enumerate(parts(cases.ids[half:]), 1):
            labelled = written(folder / f"labelled{call}", name, cases.select(ids))
            found = adapt(name, repository=repository, folder=folder / "site", labelled=labelled, progress=True)
            yield row(name, site, found.document())


def coverage(name: str, repository: Path, folder: Path, cases: Dataset, found: AdaptedSite) -> dict[str, Any]:
    """Share of true total volumes inside the interval as widened elsewhere, and as widened for this site."""
    if found.site.source.volume is None:
        return {}
    model = replace(load_model(repository / name / "1"), policy=None)
    given = written(folder / "all", name, cases)
    stages = tuple(stage.samples for stage in found.site.source.stages)
    measured = measure_all(model, repository, labelled_cases(given, model.contract, None), 0.8, stages, True)
    truth, shares = [case.truths["total"] for case in measured], {}
    for where, policy in (("elsewhere", found.site.source), ("here", found.verdict.policy)):
        steps = [serve(model.contract, policy, case).step for case in measured]
        rule = policy.volume
        ends = [widened(*step.volumes["total"], rule.widening["total"]) for step in steps] if rule else []
        inside = [low <= true <= high for (low, high), true in zip(ends, truth, strict=True)] if rule else []
        shares[f"covered, {where}"] = float(np.mean(inside)) if rule else None
    return shares


def parts(ids: Sequence[str]) -> list[tuple[str, ...]]:
    """In equal parts, one for each call."""
    return [tuple(str(each) for each in part) for part in np.array_split(np.array(ids), CALLS)]


def row(name: str, site: str, found: dict[str, Any]) -> dict[str, Any]:
    """What is known after one call; counts are of the most permissive threshold that is open, or the strictest."""
    candidates = found["candidates"]
    last = max((k for k, each in enumerate(candidates) if each["certified"]), default=0)
    return {
        "model": name,
        "site": site,
        "separation": found["separation"],
        "effective_size": found["effective_size"],
        "estimated_error": candidates[-1]["estimated_error"],
        "labelled": found["labelled"],
        "accepted": candidates[last]["accepted"],
        "errors": candidates[last]["errors"],
        "open": f"{last + 1} of {len(candidates)}" if found["open"] else "no",
    }


if __name__ == "__main__":
    main()
