"""MONAI bundle directories: a network with its weights, and what the bundle says about its images.

    configs/inference.json|yaml   network_def, preprocessing, postprocessing
    configs/metadata.json         network_data_format: channels, sizes, modality, meaning of the output's channels
    models/model.pt               the weights

See MONAI's bundle specification (docs/source/mb_specification.rst). Like a factory in a file, a bundle is code: its
expressions (`$…`) are evaluated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equipoise_core.contract import Activation, Task
from equipoise_core.preprocessing import Normalisation
from torch import nn

from ..draft import Description
from ..errors import SpecError
from .factory import importable

_CONFIGS = ("inference", "evaluate", "train")
_FORMATS = (".json", ".yaml", ".yml")
_INTENSITY = re.compile(r"(Intensity|Normalize|CLAHE|Histogram|Gamma)")
_ROUNDING = 0.01
"""A spacing is stated as one number; images resampled to it may be off by this share."""


@dataclass(frozen=True)
class Bundle:
    """A bundle's configuration, read but not evaluated."""

    folder: Path
    config: Path
    metadata: Mapping[str, Any]
    source: Mapping[str, Any] = field(repr=False)

    def stored_weights(self) -> Path:
        path = self.folder / "models" / "model.pt"
        if not path.is_file():
            raise SpecError(
                f"there is no file {path}: fetch it with `python -m monai.bundle download_large_files`, or state "
                "--weights"
            )
        return path

    def module(self, overrides: Mapping[str, Any]) -> nn.Module:
        """The network that `network_def` describes.

        Args:
            overrides: `network_def.dropout` → 0.2 and the like.
        """
        parser = _parser()
        parser.read_config(str(self.config))
        parser.read_meta(dict(self.metadata))
        parser["bundle_root"] = str(self.folder)
        parser["device"] = "$torch.device('cpu')"
        for key, value in overrides.items():
            place = key.replace(".", "#")
            if place.split("#")[0] not in self.source:
                raise SpecError(f"--arg {key}: {self.config} has no {key.split('.')[0]}; try network_def.{key}")
            parser[place] = value
        found = next((place for place in ("network_def", "network", "net") if place in self.source), None)
        if found is None:
            raise SpecError(f"{self.config} has no network_def; expected a bundle's configuration with its network")
        with importable(self.folder):
            try:
                module = parser.get_parsed_content(found)
            except Exception as error:
                raise SpecError(f"{self.config}: {found} cannot be built: {type(error).__name__}: {error}") from error
        if not isinstance(module, nn.Module):
            raise SpecError(f"{self.config}: {found} is a {type(module).__name__}; expected a torch.nn.Module")
        return module

    def stated(self) -> Description:
        """What metadata and transforms say."""
        formats = self.metadata.get("network_data_format") or {}
        image = _only((formats.get("inputs") or {}), "image")
        answer = _only((formats.get("outputs") or {}), "pred")
        sizes = image.get("spatial_shape") or []
        channels = image.get("num_channels")
        shape = (channels, *sizes)
        return Description(
            name=re.sub(r"[^A-Za-z0-9_]", "_", self.folder.resolve().name),
            task=_task(answer),
            shape=shape if sizes and all(isinstance(size, int) for size in shape) else None,
            classes=_classes(answer),
            modalities=_modalities(image.get("modality")),
            **self._transforms(len(sizes)),
        )

    def _transforms(self, rank: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for step in _steps(self.source.get("postprocessing")):
            if str(step.get("_target_", "")).rsplit(".", 1)[-1].startswith("Activations"):
                kinds = [kind for kind in Activation if step.get(kind.value) is True]
                found |= {"activation": kinds[0]} if len(kinds) == 1 else {}
        changes = []
        for step in _steps(self.source.get("preprocessing")):
            kind = str(step.get("_target_", "")).rsplit(".", 1)[-1].rstrip("dD")
            if kind == "Spacing" and _numbers(step.get("pixdim"), rank):
                ranges = ((mm * (1 - _ROUNDING), mm * (1 + _ROUNDING)) for mm in step["pixdim"][:rank])
                found["spacing"] = tuple((float(f"{low:.6g}"), float(f"{high:.6g}")) for low, high in ranges)
            elif kind == "Orientation" and isinstance(step.get("axcodes"), str):
                found["orientation"] = step["axcodes"][:rank]
            elif _INTENSITY.search(kind):
                changes.append((kind, step))
        if "preprocessing" not in self.source:
            return found | {"unclear": "it states none"}
        if not changes:
            found["normalisation"] = Normalisation.IDENTITY
        else:
            scale = _normalisation(*changes[0]) if len(changes) == 1 else None
            found |= scale or {"unclear": ", ".join(kind for kind, _ in changes)}
        return found


def read_bundle(folder: Path) -> Bundle:
    """Reads a bundle's files.

    Raises:
        SpecError: it is no bundle, or cannot be read.
    """
    places = [folder / "configs" / f"{name}{ending}" for name in _CONFIGS for ending in _FORMATS]
    config = next((place for place in places if place.is_file()), None)
    metadata = folder / "configs" / "metadata.json"
    if config is None:
        raise SpecError(
            f"{folder} is no MONAI bundle: there is no configs/inference.json (or .yaml). SPEC is a bundle directory, "
            "package.module:callable, file.py:callable or an ONNX file"
        )
    parser = _parser()
    try:
        source = parser.load_config_file(str(config))
        described = json.loads(metadata.read_text(encoding="utf-8")) if metadata.is_file() else {}
    except Exception as error:
        raise SpecError(f"{folder} cannot be read as a MONAI bundle: {type(error).__name__}: {error}") from error
    return Bundle(folder, config, described, source)


def _parser() -> Any:
    try:
        from monai.bundle import ConfigParser
    except ImportError as error:
        raise SpecError(f"a MONAI bundle needs the package monai ({error}): pip install monai pyyaml") from error
    return ConfigParser()


def _only(described: Mapping[str, Any], usual: str) -> Mapping[str, Any]:
    """The tensor of the usual name, or the only one."""
    if usual in described:
        return described[usual]  # type: ignore[no-any-return]
    return next(iter(described.values())) if len(described) == 1 else {}


def _task(answer: Mapping[str, Any]) -> Task | None:
    """An image of labels is a segmentation, probabilities without extent a classification."""
    if not answer:
        return None
    if answer.get("type") == "probabilities" or not answer.get("spatial_shape"):
        return Task.CLASSIFICATION
    return Task.SEGMENTATION if answer.get("format") in ("segmentation", "labels", "classes") else None


def _classes(answer: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the channels in order, where every channel has one."""
    named = {int(index): str(name) for index, name in (answer.get("channel_def") or {}).items() if str(index).isdigit()}
    if sorted(named) != list(range(answer.get("num_channels") or 0)) or not named:
        return None
    return tuple(named[index] for index in sorted(named))


def _modalities(stated: Any) -> tuple[str, ...]:
    """DICOM codes among what is stated: CT, MR (MRI), US, …"""
    entries = stated if isinstance(stated, list) else re.split(r"[,/ ]+", str(stated or ""))
    codes = {"MRI": "MR"}
    found = [codes.get(str(entry), str(entry)) for entry in entries]
    return tuple(code for code in found if re.fullmatch(r"[A-Z]{2}", code))


def _steps(transforms: Any) -> list[Mapping[str, Any]]:
    steps = transforms.get("transforms", []) if isinstance(transforms, Mapping) else transforms
    return [step for step in steps or [] if isinstance(step, Mapping)] if isinstance(steps, list) else []


def _numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) >= count and all(isinstance(v, (int, float)) and v > 0 for v in value)


def _normalisation(kind: str, step: Mapping[str, Any]) -> dict[str, Any] | None:
    """The contract's words for one intensity transform; None where it does something else.

    Case 1: NormalizeIntensity of each channel by its own mean and deviation is `zscore`.
    Case 2: ScaleIntensity to 0…1 is `percentile` 0 to 100.
    Case 3: ScaleIntensityRange to 0…1 without clipping is `window`.
    """
    if kind == "NormalizeIntensity" and not step.get("nonzero") and "subtrahend" not in step and "divisor" not in step:
        return {"normalisation": Normalisation.ZSCORE} if step.get("channel_wise") else None
    if (step.get("minv", 0.0), step.get("maxv", 1.0)) != (0.0, 1.0) or step.get("factor") is not None:
        return None
    if kind == "ScaleIntensity" and step.get("channel_wise"):
        return {"normalisation": Normalisation.PERCENTILE, "low": 0.0, "high": 100.0}
    ends = (step.get("a_min"), step.get("a_max"))
    plain = (step.get("b_min"), step.get("b_max")) == (0, 1) and not step.get("clip")
    if kind == "ScaleIntensityRange" and plain and all(isinstance(end, (int, float)) for end in ends):
        return {"normalisation": Normalisation.WINDOW, "low": float(ends[0]), "high": float(ends[1])}  # type: ignore[arg-type]
    return None
