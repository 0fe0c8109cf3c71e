"""Versions with known vulnerabilities, as of 22 November 2026. A table in a release grows old: read the sources too.

Triton: NVIDIA's product security bulletins (github.com/NVIDIA/product-security, CSAF; snapshot of 18 August 2026, and
bulletin 5875 of 8 September 2026). A release of Triton is the container's year and month.

Python packages: PyPA's advisory database (PYSEC numbers), GitHub's advisories and the projects' own release notes, as
far as they could be read; those that a serving installation has. OSV and PyPI's own data could not be reached here.
"""

from __future__ import annotations

from dataclasses import dataclass

AS_OF = "2026-11-22"


@dataclass(frozen=True)
class Advisory:
    """Vulnerabilities that one release of Triton fixed.

    Attributes:
        fixed: release that has the fix.
        worst: highest CVSS base score among them.
        bulletin: number of NVIDIA's security bulletin.
    """

    fixed: str
    worst: float
    bulletin: str
    cves: tuple[str, ...]


@dataclass(frozen=True)
class Vulnerable:
    """A Python package that is vulnerable below a version; `fixed` None: no fixed version is known.

    Attributes:
        last: where nothing is fixed, the last version known to be affected.
        reach: which part is vulnerable, or what Equipoise does with the package.
        used: whether that part is used here.
    """

    package: str
    fixed: str | None
    cves: tuple[str, ...]
    reach: str
    used: bool = False
    last: str = ""


TRITON = (
    Advisory("23.11", 7.5, "5509", ("CVE-2023-31036",)),
    Advisory(
        "24.04",
        9.0,
        "5535",
        (
            "CVE-2024-0087",
            "CVE-2024-0088",
            "CVE-2024-0100",
        ),
    ),
    Advisory(
        "24.05",
        5.4,
        "5546",
        (
            "CVE-2024-0095",
            "CVE-2024-0103",
        ),
    ),
    Advisory("24.09", 4.9, "5565", ("CVE-2024-0116",)),
    Advisory("24.12", 4.9, "5612", ("CVE-2024-53880",)),
    Advisory(
        "25.05",
        7.5,
        "5687",
        (
            "CVE-2025-23323",
            "CVE-2025-23324",
            "CVE-2025-23325",
            "CVE-2025-23326",
            "CVE-2025-23327",
            "CVE-2025-23335",
        ),
    ),
    Advisory(
        "25.06",
        7.5,
        "5687",
        (
            "CVE-2025-23322",
            "CVE-2025-23331",
        ),
    ),
    Advisory(
        "25.07",
        9.8,
        "5687",
        (
            "CVE-2025-23268",
            "CVE-2025-23310",
            "CVE-2025-23311",
            "CVE-2025-23317",
            "CVE-2025-23318",
            "CVE-2025-23319",
            "CVE-2025-23320",
            "CVE-2025-23321",
            "CVE-2025-23333",
            "CVE-2025-23334",
        ),
    ),
    Advisory(
        "25.08",
        9.8,
        "5691",
        (
            "CVE-2025-23316",
            "CVE-2025-23328",
            "CVE-2025-23329",
            "CVE-2025-23336",
        ),
    ),
    Advisory("25.09", 7.5, "5723", ("CVE-2025-33202",)),
    Advisory(
        "25.10",
        7.5,
        "5734",
        (
            "CVE-2025-33201",
            "CVE-2025-33211",
        ),
    ),
    Advisory(
        "26.01",
        7.5,
        "5790",
        (
            "CVE-2025-33238",
            "CVE-2025-33254",
            "CVE-2026-24158",
        ),
    ),
    Advisory(
        "26.02",
        7.5,
        "5816",
        (
            "CVE-2026-24146",
            "CVE-2026-24147",
            "CVE-2026-24173",
            "CVE-2026-24174",
            "CVE-2026-24175",
        ),
    ),
    Advisory(
        "26.03",
        9.8,
        "5828",
        (
            "CVE-2026-24206",
            "CVE-2026-24207",
            "CVE-2026-24208",
            "CVE-2026-24209",
            "CVE-2026-24210",
            "CVE-2026-24213",
            "CVE-2026-24214",
            "CVE-2026-24215",
        ),
    ),
    Advisory(
        "26.04",
        7.5,
        "5848",
        (
            "CVE-2026-24264",
            "CVE-2026-24266",
        ),
    ),
    Advisory("26.04", 7.5, "5875", ("CVE-2026-47625",)),
    Advisory(
        "26.05",
        7.5,
        "5853",
        (
            "CVE-2026-47476",
            "CVE-2026-47477",
            "CVE-2026-47478",
            "CVE-2026-47479",
            "CVE-2026-47480",
            "CVE-2026-47481",
            "CVE-2026-47482",
        ),
    ),
    Advisory(
        "26.06",
        9.8,
        "5865",
        (
            "CVE-2026-47606",
            "CVE-2026-47627",
            "CVE-2026-47628",
            "CVE-2026-47629",
            "CVE-2026-47630",
        ),
    ),
    Advisory("26.07", 7.5, "5875", ("CVE-2026-16497",)),
)

SAFE_TRITON = max((advisory.fixed for advisory in TRITON), key=lambda release: tuple(map(int, release.split("."))))
"""The first release without any of these."""

CONTAINER_OF = {f"2.{42 + month}": f"{24 + month // 12}.{month % 12 + 1:02d}" for month in range(18)}
"""Triton's own version → the container's release: 2.42 is 24.01, 2.51 is 24.10, 2.59 is 25.06. Beyond that they do not
keep step."""

PYTHON = (
    Vulnerable("aiohttp", "3.14.3", ("CVE-2026-69244", "CVE-2026-59881", "CVE-2026-69243"), "not used by serving"),
    Vulnerable("h11", "0.16.0", ("CVE-2025-43859",), "not used by serving"),
    Vulnerable("jinja2", "3.1.6", ("CVE-2025-27516",), "only our own templates are rendered"),
    Vulnerable(
        "onnx", "1.21.0", ("CVE-2026-28500", "CVE-2026-27489", "CVE-2026-34446"), "export only, on trusted files"
    ),
    Vulnerable("pillow", "12.2.0", ("CVE-2026-40192",), "reads images that clients name", used=True),
    Vulnerable("protobuf", "6.33.5", ("CVE-2026-0994",), "parses what the server answers", used=True),
    Vulnerable("pydicom", "3.0.2", ("CVE-2026-32711",), "DICOMDIR file-sets, which are not read"),
    Vulnerable("pynetdicom", None, ("CVE-2026-56445",), "its application qrscp, which is not used", last="3.0.4"),
    Vulnerable("requests", "2.32.4", ("CVE-2024-47081",), "only with credentials from .netrc"),
    Vulnerable(
        "urllib3", "2.8.0", ("CVE-2026-97687", "CVE-2026-97689", "CVE-2026-44431"), "DICOMweb and Orthanc", used=True
    ),
)
