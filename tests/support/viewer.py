"""OHIF in headless Chromium beside a real Orthanc, all in Orthanc's network; and the values that it shows."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .orthanc import HTTP_PORT, Site

ROOT = Path(__file__).resolve().parents[2]
PORT = 8080  # in a namespace of its own
FLAGS = (
    "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist",
    "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync",
)  # fmt: skip

_READY = """count => {
    try {
        const {displaySetService, viewportGridService} = window.services;
        const {activeViewportId, viewports} = viewportGridService.getState();
        return displaySetService.getActiveDisplaySets().length >= count
            && viewports.get(activeViewportId).displaySetInstanceUIDs.length > 0;
    } catch {
        return false;  // the services come up one after the other
    }
}"""

_SHOW = """([modality, words]) => {
    const {displaySetService, viewportGridService, hangingProtocolService} = window.services;
    const wanted = displaySetService.getActiveDisplaySets()
        .find(each => each.Modality === modality && each.SeriesDescription.includes(words));
    const viewport = viewportGridService.getState().activeViewportId;
    viewportGridService.setDisplaySetsForViewports(
        hangingProtocolService.getViewportsRequireUpdate(viewport, wanted.displaySetInstanceUID));
    return wanted.displaySetInstanceUID;
}"""

_SEGMENTS = """() => {
    const [found] = window.services.segmentationService.getSegmentations();
    const {cache, metaData} = window.cornerstone;
    return found.representationData.Labelmap.imageIds.map(id => {
        const image = cache.getImage(id);
        const plane = metaData.get('imagePlaneModule', image.referencedImageId || id);
        return {
            position: Array.from(plane.imagePositionPatient),
            row: Array.from(plane.rowCosines), column: Array.from(plane.columnCosines),
            between: [plane.rowPixelSpacing, plane.columnPixelSpacing],
            size: [image.rows, image.columns],
            values: Array.from(image.voxelManager ? image.voxelManager.getScalarData() : image.getPixelData()),
        };
    });
}"""

_LOADED = """identifier => window.cornerstone.cache.getVolumes()
    .some(each => each?.volumeId.includes(identifier) && each.loadStatus?.loaded)"""

_VOLUME = """identifier => {
    const volume = window.cornerstone.cache.getVolumes().find(each => each?.volumeId.includes(identifier));
    return {
        size: Array.from(volume.dimensions), origin: Array.from(volume.origin), spacing: Array.from(volume.spacing),
        direction: Array.from(volume.direction),
        values: Array.from(volume.voxelManager.getCompleteScalarDataArray()),
    };
}"""


@dataclass(frozen=True)
class Shown:
    """Values as the viewer holds them, each with the place where it shows it.

    Attributes:
        points: mm, LPS, `[n, 3]`.
        values: `[n]`.
    """

    points: NDArray[np.float64]
    values: NDArray[np.float64]

    def at(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values at voxel centres `[…, 3]`; every voxel shown must be one of them, and the other way round."""
        asked = np.rint(points.reshape(-1, 3) * 100).astype(int)
        index = {tuple(place): number for number, place in enumerate(np.rint(self.points * 100).astype(int))}
        assert len(index) == len(asked), f"{len(index)} voxels are shown, expected {len(asked)}"
        near = [index.get(tuple(place)) for place in asked]
        if any(each is None for each in near):  # rounded to the other side: the nearest, if it is near
            distance = np.abs(points.reshape(-1, 1, 3) - self.points[None]).max(axis=-1)
            assert distance.min(axis=1).max() < 0.01, "voxels are shown where the source has none"
            near = list(distance.argmin(axis=1))
        return self.values[np.array(near)].reshape(points.shape[:-1])


@dataclass(frozen=True)
class Viewer:
    """A page with OHIF."""

    page: Any
    url: str

    def open(self, study: str, series: int) -> None:
        """Opens a study and waits until that many series are listed."""
        self.page.goto(f"{self.url}/viewer?StudyInstanceUIDs={study}")
        self.page.wait_for_function(_READY, arg=series, timeout=120_000)

    def segments(self) -> Shown:
        """Loads the Segmentation; the number of the segment at each voxel."""
        self.page.evaluate(_SHOW, ["SEG", ""])
        self.page.wait_for_function(
            "() => window.services.segmentationService.getSegmentations().length === 1", timeout=120_000
        )
        places, values = [], []
        for image in self.page.evaluate(_SEGMENTS):
            rows, columns = np.meshgrid(*map(np.arange, image["size"]), indexing="ij")
            along_row = np.array(image["row"]) * image["between"][1]
            along_column = np.array(image["column"]) * image["between"][0]
            place = np.array(image["position"]) + columns[..., None] * along_row + rows[..., None] * along_column
            places.append(place.reshape(-1, 3))
            values.append(np.array(image["values"], np.float64))
        return Shown(np.concatenate(places), np.concatenate(values))

    def parametric_map(self, words: str) -> Shown:
        """Loads the Parametric Map whose description holds the words; its value at each voxel."""
        identifier = self.page.evaluate(_SHOW, ["PMAP", words])
        self.page.wait_for_function(
            _LOADED,
            arg=identifier,
            timeout=120_000,
        )
        volume = self.page.evaluate(_VOLUME, identifier)
        columns, rows, slices = volume["size"]
        k, j, i = np.meshgrid(np.arange(slices), np.arange(rows), np.arange(columns), indexing="ij")
        steps = np.array(volume["direction"]).reshape(3, 3) * np.array(volume["spacing"])[:, None]
        places = np.array(volume["origin"]) + np.stack([i, j, k], axis=-1) @ steps
        return Shown(places.reshape(-1, 3), np.array(volume["values"], np.float64))


@contextmanager
def viewer(site: Site, directory: Path) -> Iterator[Viewer]:
    """OHIF from npm, served by nginx with the project's own configuration, in a browser."""
    from playwright.sync_api import sync_playwright

    files = ROOT / "build/viewer"
    subprocess.run(["bash", str(ROOT / "deploy/viewer/fetch.sh"), str(files)], check=True, timeout=280)
    directory.mkdir(parents=True, exist_ok=True)
    configuration = (ROOT / "deploy/viewer/nginx.conf").read_text()
    for name, value in {
        "RUN": directory,
        "PORT": PORT,
        "VIEWER": files / "package/dist",
        "CONFIG": ROOT / "deploy/viewer/app-config.js",
        "ORTHANC": f"http://127.0.0.1:{HTTP_PORT}",
    }.items():
        configuration = configuration.replace(f"@{name}@", str(value))
    # As root nginx would read the files as nobody, who may not see the checkout.
    (directory / "nginx.conf").write_text(f"user root;\n{configuration}")
    chromium = directory / "chromium"
    chromium.write_text(f'#!/bin/sh\nexec {" ".join(site.network.command("chromium"))} "$@"\n')
    chromium.chmod(0o755)
    nginx = subprocess.Popen(site.network.command("nginx", "-c", str(directory / "nginx.conf")))
    knock = f"until (exec 3<>/dev/tcp/127.0.0.1/{PORT}) 2>/dev/null; do sleep 0.1; done"
    try:
        subprocess.run(site.network.command("bash", "-c", knock), check=True, timeout=60)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=str(chromium), args=list(FLAGS))
            try:
                yield Viewer(browser.new_page(viewport={"width": 1400, "height": 900}), f"http://127.0.0.1:{PORT}")
            finally:
                browser.close()
    finally:
        nginx.terminate()
        nginx.wait(30)
