"""The bill of materials: CycloneDX 1.6, every package, model and container image that a bundle needs."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from equipoise_core.canonical import digest_of
from equipoise_core.contract import load_contract
from equipoise_core.policy import PolicyError, load_policy
from packageurl import PackageURL
from packaging.utils import canonicalize_name, parse_wheel_filename

from ..errors import ReleaseError
from ..releases.release import File

WRITTEN = datetime(1980, 1, 1, tzinfo=timezone.utc)
"""A fixed time: the same content is the same document."""


def bill_of_materials(
    version: str, wheels: Sequence[Path], files: Mapping[str, File], models: Mapping[str, Path], images: Sequence[str]
) -> str:
    """The document, as JSON.

    Args:
        version: of Equipoise.
        wheels: every package, in files.
        files: entry of the bundle → its digest.
        models: path of a public model in the bundle (`models/NAME`, `store/models/NAME/VERSION/NAME`) → its folder.
        images: names of container images, with tag and digest where known.
    """
    whole = Component(name="equipoise-bundle", version=version, type=ComponentType.APPLICATION, bom_ref="bundle")
    parts = [
        *(_package(wheel, files[f"wheels/{wheel.name}"]) for wheel in wheels),
        *(_model(place, folder, files) for place, folder in models.items()),
        *(Component(name=image, type=ComponentType.CONTAINER, bom_ref=f"image:{image}") for image in images),
    ]
    contents = {name: file.sha256 for name, file in files.items()}
    bom = Bom(
        components=parts,
        metadata=BomMetaData(component=whole, timestamp=WRITTEN),
        serial_number=uuid5(NAMESPACE_URL, f"equipoise-bundle:{digest_of(contents)}"),
    )
    bom.register_dependency(whole, parts)
    return str(JsonV1Dot6(bom).output_as_string(indent=1)) + "\n"


def listed_packages(document: str) -> dict[str, str]:
    """Of a bill: package → version, names in canonical spelling."""
    components: Iterable[dict[str, Any]] = json.loads(document)["components"]
    return {
        canonicalize_name(each["name"]): each["version"]
        for each in components
        if str(each.get("purl", "")).startswith("pkg:pypi/")
    }


def _package(wheel: Path, file: File) -> Component:
    name, version, _, _ = parse_wheel_filename(wheel.name)
    terms = _license(wheel)
    return Component(
        name=str(name),
        version=str(version),
        type=ComponentType.LIBRARY,
        purl=PackageURL("pypi", None, str(name), str(version)),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=file.sha256)],
        licenses=[DisjunctiveLicense(name=terms)] if terms else [],
        bom_ref=f"{name}=={version}",
    )


def _license(wheel: Path) -> str:
    """The package's licence in one line, or nothing."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            metadata = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA") and n.count("/") == 1)
            headers = HeaderParser().parsestr(archive.read(metadata).decode(errors="replace"))
    except (OSError, zipfile.BadZipFile, StopIteration) as error:
        raise ReleaseError(f"{wheel} is not a wheel: {error}") from error
    stated = headers.get("License-Expression") or headers.get("License") or ""
    lines = str(stated).strip().splitlines()
    return lines[0][:100] if lines and lines[0] != "UNKNOWN" else ""


def _model(place: str, folder: Path, files: Mapping[str, File]) -> Component:
    """A public model with the files of its own and of its samplers in the bundle."""
    contract = load_contract(folder / "1" / "contract.json")
    home = place.rpartition("/")[0]
    folders = [contract.name, *(s.name for s in contract.files)]
    own = sorted(name for name in files if any(name.startswith(f"{home}/{part}/") for part in folders))
    try:
        policy = load_policy(folder / "1" / "policy.json").digest
    except PolicyError:
        policy = "none"
    return Component(
        name=contract.name,
        version=contract.model_digest[:12],
        type=ComponentType.MACHINE_LEARNING_MODEL,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=contract.model_digest)],
        properties=[
            Property(name="equipoise:contract_digest", value=contract.digest),
            Property(name="equipoise:policy_digest", value=policy),
            Property(name="equipoise:task", value=contract.task.value),
        ],
        components=[
            Component(
                name=name,
                type=ComponentType.FILE,
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=files[name].sha256)],
                bom_ref=name,
            )
            for name in own
        ],
        bom_ref=f"model:{place}",
    )
