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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from equipoise_core.contract import Activation, Task
from numpy.typing import NDArray
from torch import Tensor, nn

from ..draft import Description
from ..errors import SpecError
from .factory import importable
from .monai_transforms import Reading, Unmapped, read_transforms, transform_name

_CONFIGS = ("inference", "evaluate", "train")
_FORMATS = (".json", ".yaml", ".yml")


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
        parser = self._resolver()
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

    def _resolver(self) -> Any:
        parser = _parser()
        parser.read_config(str(self.config))
        parser.read_meta(dict(self.metadata))
        parser["bundle_root"] = str(self.folder)
        parser["device"] = "$torch.device('cpu')"
        return parser

    def stated(self) -> Description:
        """What metadata and transforms say."""
        image, answer = self._image, self._answer
        sizes = image.get("spatial_shape") or []
        channels = image.get("num_channels")
        shape = (channels, *sizes)
        return Description(
            name=re.sub(r"[^A-Za-z0-9_]", "_", self.folder.resolve().name),
            task=_task(answer),
            shape=shape if sizes and all(isinstance(size, int) for size in shape) else None,
            classes=_classes(answer),
            modalities=_modalities(image.get("modality")),
            **self._transforms(),
        )

    def _transforms(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for step in _steps(self.source.get("postprocessing")):
            if transform_name(step).startswith("Activations"):
                kinds = [kind for kind in Activation if step.get(kind.value) is True]
                found |= {"activation": kinds[0]} if len(kinds) == 1 else {}
        try:
            reading, _ = self._preprocessing
        except Unmapped as error:
            return found | {"unclear": f"the bundle's preprocessing cannot be taken over: {error}"}
        return found | reading.stated | {"preprocess": tuple(reading.steps)}

    @cached_property
    def _preprocessing(self) -> tuple[Reading, list[str]]:
        """What the transforms before the network say, and where those of intensities stand. Raises Unmapped."""
        if "preprocessing" not in self.source:
            raise Unmapped("it states none (the configuration has no preprocessing)")
        parser, image = self._resolver(), self._image
        places = list(_places(parser, "preprocessing"))
        with importable(self.folder):
            transforms = [_resolved(parser, place) for place in places]
        at = [n for n, each in enumerate(transforms) if not each.get("_disabled_")]
        reading = read_transforms(
            [transforms[n] for n in at],
            image.get("num_channels"),
            image.get("spatial_shape") or [],
            _task(self._answer),
            _name(self._inputs, "image"),
        )
        return reading, [places[at[n]] for n in reading.of]

    def transform(self, image: Tensor) -> NDArray[np.float32]:
        """The bundle's own transforms of intensities, run by MONAI: `[C, *S]` → `[C', *S]`."""
        parser, current = self._resolver(), image
        with importable(self.folder):
            for place in self._preprocessing[1]:
                transform = parser.get_parsed_content(place)
                keys = getattr(transform, "keys", None)
                current = transform(dict.fromkeys(keys, current))[keys[0]] if keys else transform(current)
        return np.asarray(current, np.float32)

    @property
    def _image(self) -> Mapping[str, Any]:
        return _only(self._inputs, "image")

    @property
    def _inputs(self) -> Mapping[str, Any]:
        return (self.metadata.get("network_data_format") or {}).get("inputs") or {}

    @property
    def _answer(self) -> Mapping[str, Any]:
        return _only((self.metadata.get("network_data_format") or {}).get("outputs") or {}, "pred")


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
    return described.get(_name(described, usual) or "", {})  # type: ignore[no-any-return]


def _name(described: Mapping[str, Any], usual: str) -> str | None:
    return usual if usual in described else next(iter(described)) if len(described) == 1 else None


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


def _places(parser: Any, place: str) -> Iterator[str]:
    """Where the single transforms stand in a configuration. Raises Unmapped for what is not written out there."""
    found = parser[place]
    if isinstance(found, str) and found.startswith("@"):
        yield from _places(parser, found[1:].replace("::", "#"))
    elif isinstance(found, list):
        for number in range(len(found)):
            yield from _places(parser, f"{place}#{number}")
    elif isinstance(found, Mapping) and transform_name(found) == "Compose":
        yield from _places(parser, f"{place}#transforms") if "transforms" in found else ()
    elif isinstance(found, Mapping) and "_target_" in found:
        yield place
    else:
        raise Unmapped(f"{found!r} at {place} is no list of transforms that can be read")


def _resolved(parser: Any, place: str) -> dict[str, Any]:
    """A transform's configuration with the values of its references and expressions."""
    given = dict(parser[place])
    for name, value in given.items():
        if name != "_target_" and any(sign in str(value) for sign in "@$"):
            try:
                given[name] = parser.get_parsed_content(f"{place}#{name}")
            except Exception as error:
                raise Unmapped(f"{place}#{name}, {value!r}, cannot be evaluated: {error}") from error
    return given
