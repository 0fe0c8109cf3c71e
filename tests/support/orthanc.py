"""A real Orthanc (PACS) with DICOMweb in a network of its own, since it binds 0.0.0.0 whatever it is told.

The network is a Linux network namespace joined to this machine by a pair of virtual interfaces with two addresses:
nothing outside this machine reaches it. Needs root, iproute2 and Orthanc (deploy/system-packages.sh).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
HTTP_PORT, DICOM_PORT = 8042, 4242  # inside a namespace of its own no port is ever taken


@dataclass
class Network:
    """A namespace and the two ends of its only cable."""

    name: str
    near: str  # this machine's address, as the namespace sees it
    far: str  # the namespace's address, as this machine sees it

    def command(self, *words: str) -> list[str]:
        """The words as a command that runs inside."""
        return ["ip", "netns", "exec", self.name, *words]


@contextmanager
def network() -> Iterator[Network]:
    """A namespace that is there as long as the block runs."""
    assert os.geteuid() == 0 and shutil.which("ip"), "needs root and iproute2: run deploy/system-packages.sh as root"
    for _ in range(100):
        number = random.randrange(1 << 14)
        made = Network(
            f"equipoise-{number}",
            f"10.231.{number >> 6}.{(number & 63) * 4 + 1}",
            f"10.231.{number >> 6}.{(number & 63) * 4 + 2}",
        )
        if subprocess.run(["ip", "netns", "add", made.name], capture_output=True).returncode == 0:
            break
    else:
        raise AssertionError("no network namespace could be made")
    near, far = f"eqn{number}", f"eqf{number}"
    try:
        for line in (
            f"ip link add {near} type veth peer name {far} netns {made.name}",
            f"ip addr add {made.near}/30 dev {near}",
            f"ip link set {near} up",
            f"ip -n {made.name} addr add {made.far}/30 dev {far}",
            f"ip -n {made.name} link set {far} up",
            f"ip -n {made.name} link set lo up",
        ):
            subprocess.run(line.split(), check=True, capture_output=True)
        yield made
    finally:
        subprocess.run(["ip", "netns", "del", made.name], capture_output=True)
        subprocess.run(["ip", "link", "del", near], capture_output=True)


@dataclass
class Site:
    """A running PACS.

    Attributes:
        http_url: of Orthanc's own REST interface; DICOMweb is at `dicomweb_url`.
        host, dicom_port, aet: its DIMSE address.
        near: this machine's address as the PACS sees it, for listeners that it should reach.
        directory: its storage and its log.
    """

    network: Network
    directory: Path
    settings: Mapping[str, Any]
    aet: str = "ORTHANC"
    dicom_port: int = DICOM_PORT
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def host(self) -> str:
        return self.network.far

    @property
    def near(self) -> str:
        return self.network.near

    @property
    def http_url(self) -> str:
        return f"http://{self.host}:{HTTP_PORT}"

    @property
    def dicomweb_url(self) -> str:
        return f"{self.http_url}/dicom-web"

    def start(self) -> None:
        """Starts it over what its directory holds, and waits until it answers."""
        configuration = self.directory / "orthanc.json"
        configuration.write_text(
            json.dumps(
                {
                    "Name": "test",
                    "StorageDirectory": str(self.directory / "storage"),
                    "IndexDirectory": str(self.directory / "storage"),
                    "HttpPort": HTTP_PORT,
                    "RemoteAccessAllowed": True,
                    "AuthenticationEnabled": False,
                    "DicomPort": self.dicom_port,
                    "DicomAet": self.aet,
                    "DicomAlwaysAllowFind": True,
                    "StableAge": 1,
                    "Plugins": [str(PLUGIN)],
                    "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "StudiesMetadata": "Full"},
                    **self.settings,
                }
            )
        )
        with (self.directory / "orthanc.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.network.command("Orthanc", str(configuration)), stdout=log, stderr=subprocess.STDOUT
            )
        deadline, pause = time.monotonic() + 60, threading.Event()
        while True:
            try:
                self.get("/system", timeout=5)
                return
            except OSError as error:
                alive = self._process.poll() is None
                if not alive or time.monotonic() > deadline:
                    log = (self.directory / "orthanc.log").read_text()[-2000:]
                    raise AssertionError(f"Orthanc did not start:\n{log}") from error
            pause.wait(0.02)

    def stop(self) -> None:
        """Stops it; what it stored stays."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(30)
            self._process = None

    def get(self, path: str, timeout: float = 30) -> Any:
        """JSON from Orthanc's REST interface."""
        with urllib.request.urlopen(self.http_url + path, timeout=timeout) as answer:
            return json.load(answer)

    def post(self, path: str, body: bytes | str, timeout: float = 60) -> Any:
        """JSON that Orthanc answers to a POST; `/instances` takes a DICOM file."""
        data = body.encode() if isinstance(body, str) else body
        with urllib.request.urlopen(self.http_url + path, data=data, timeout=timeout) as answer:
            return json.load(answer)

    def delete(self, path: str) -> None:
        """Deletes a patient, study, series or instance."""
        urllib.request.urlopen(urllib.request.Request(self.http_url + path, method="DELETE"), timeout=60).close()

    def upload(self, *files: Path) -> None:
        """Stores DICOM files, a folder with all in it."""
        for file in files:
            for each in sorted(file.iterdir()) if file.is_dir() else [file]:
                self.post("/instances", each.read_bytes())

    def instances(self) -> dict[str, dict[str, Any]]:
        """SOP Instance UID → main tags and those of its series (`Modality`, `SeriesDescription`, `SeriesInstanceUID`,
        `StudyInstanceUID`) for everything that is stored."""
        found = {}
        for series in self.get("/series?expand"):
            study = self.get(f"/studies/{series['ParentStudy']}")["MainDicomTags"]
            for each in self.get(f"/series/{series['ID']}/instances"):
                tags = {**study, **series["MainDicomTags"], **each["MainDicomTags"], "ID": each["ID"]}
                found[tags["SOPInstanceUID"]] = tags
        return found

    def position(self) -> int:
        """How far its log of changes is."""
        return int(self.get("/changes?last")["Last"])

    def stable(self, since: int) -> bool:
        """Whether all that came after a position has been logged as stable: series, studies and patients.

        `IsStable` says so before the log does, and the log of each is written at a time of its own.
        """
        new, stable, done = {}, {}, False
        while not done:
            answer = self.get(f"/changes?since={since}&limit=1000")
            for change in answer["Changes"]:
                if change["ChangeType"] == "NewInstance":
                    new[change["ID"]] = change["Seq"]
                elif change["ChangeType"].startswith("Stable"):
                    stable[change["ID"]] = change["Seq"]
            since, done = answer["Last"], answer["Done"]
        for series in self.get("/series?expand"):
            last = max((new[each] for each in series["Instances"] if each in new), default=0)
            study = series["ParentStudy"]
            parents = (series["ID"], study, self.get(f"/studies/{study}")["ParentPatient"])
            if last and any(stable.get(each, 0) < last for each in parents):
                return False
        return True

    def file(self, identifier: str) -> bytes:
        """The stored DICOM file of an instance, by Orthanc's `ID`."""
        with urllib.request.urlopen(f"{self.http_url}/instances/{identifier}/file", timeout=60) as answer:
            return bytes(answer.read())


@contextmanager
def orthanc(directory: Path, **settings: Any) -> Iterator[Site]:
    """An empty PACS (or what `directory` holds), ready; `settings` go into Orthanc's configuration file."""
    assert shutil.which("Orthanc") and PLUGIN.exists(), "Orthanc is missing: run deploy/system-packages.sh as root"
    directory.mkdir(parents=True, exist_ok=True)
    with network() as made:
        site = Site(made, directory, settings)
        try:
            site.start()
            yield site
        finally:
            site.stop()
