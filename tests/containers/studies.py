"""Studies through the gateway that compose.yaml starts: results back, an upgrade, a full disk, a host abroad."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections import Counter
from typing import Any

import numpy as np
import pydicom

from ..support.gateways import send
from ..support.steps import Note, Wrong
from .compose import at_home, confined, predict
from .engine import BUILD, inspect, podman, run, wait
from .images import upgraded
from .machines import HOURS_BEHIND, SLOW, libraries_of_a_foreign_host
from .site import ARCHIVE, DICOM, REVIEW, VIEWER, Site, data, get, get_json, site
from .stops import killed

ARRIVING = ("triton-cpu", "haproxy", "gateway", "orthanc")
OUT_OF_RESOURCES = 0xA700
"""C-STORE: refused, out of resources; a sender tries again."""


def images(suffix: str = "", shuffled: bool = False) -> list[bytes]:
    """An MR study of 32 images that is accepted; with a suffix of its UIDs it is another one with the same pixels.

    Args:
        shuffled: the pixels of each image change places, so that an expert has to look at it.
    """
    files = sorted((data() / "dicom" / "study1-hippocampus-crop").glob("*.dcm"))
    return [_renamed(file.read_bytes(), suffix, shuffled) if suffix else file.read_bytes() for file in files]


def _renamed(content: bytes, suffix: str, shuffled: bool) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(content))
    if shuffled:
        dataset.PixelData = np.random.default_rng(0).permutation(dataset.pixel_array.ravel()).tobytes()
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(dataset, name, dataset[name].value[: 64 - len(suffix)] + suffix)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    written = io.BytesIO()
    dataset.save_as(written)
    return written.getvalue()


def study_abroad(target: object, note: Note) -> str:
    """A modality sends, Orthanc gets SEG, maps and report, the worklist shows a case, OHIF is served.

    Then the gateway is upgraded to another image over its volume, and what it had is sent again. All this with Turkish
    letters and decimal commas, in the zone farthest ahead, and with a gateway whose clock is 40 hours slow.
    """
    with site(changed=abroad()) as up:
        for service in ("gateway", "review"):
            note(service, confined(up.name(service)))
        note("gateway", clock(up))
        home, there = at_home(), predict(up)
        if there != home:
            raise Wrong(f"abroad the answer is {there}, at home {home}")
        first = arrives(images())
        note("results", dict(first))
        note("cases in the worklist", worklist(up))
        note("viewer", viewed(up))
        note("after the upgrade", gateway_upgraded(up, first))
    return f"abroad: a study went in over DICOM, {sum(first.values())} results came back: {dict(first)}; none twice"


def abroad() -> dict[str, Any]:
    """What the compose file's services have of another country."""
    libraries = libraries_of_a_foreign_host(BUILD / "abroad")
    place: dict[str, Any] = {
        "environment": {"TZ": "Pacific/Kiritimati", "LC_ALL": "tr_TR.UTF-8", "LOCPATH": "/abroad/locale"},
        "volumes": [f"{libraries}:/abroad:ro"],
    }
    services = dict.fromkeys(("triton-cpu", "haproxy", "review", "orthanc"), place)
    slow = {**place["environment"], "LD_PRELOAD": f"/abroad/{SLOW}"}
    return {**services, "gateway": {**place, "environment": slow}}


def clock(up: Site) -> dict[str, Any]:
    """What the gateway's container shows of where it is. Raises Wrong where it is at home."""
    point, seconds = podman("exec", up.name("gateway"), "python", "-c", ASK).split()
    found = {"decimal point": point, "hours behind": round((time.time() - float(seconds)) / 3600, 1)}
    if found != {"decimal point": ",", "hours behind": HOURS_BEHIND}:
        raise Wrong(f"the gateway's container is not abroad: {found}")
    return found


ASK = """
import locale, time
locale.setlocale(locale.LC_ALL, "")
print(locale.localeconv()["decimal_point"], time.time())
"""


def arrives(study: list[bytes], kinds: frozenset[str] = frozenset({"SEG", "SR"})) -> Counter[str]:
    """Its results by modality, once those of these kinds are in the archive. Raises Wrong."""
    uid = str(pydicom.dcmread(io.BytesIO(study[0]), stop_before_pixels=True).StudyInstanceUID)
    if statuses := set(send(DICOM, study)) - {0}:
        raise Wrong(f"the gateway did not take every image: {statuses}")
    wait(lambda: kinds <= results(uid).keys(), "results in the archive", 180.0)
    return results(uid)


def results(study: str) -> Counter[str]:
    """Modality → series of a study in the archive."""
    found = Counter[str]()
    for each in get_json(ARCHIVE, "/studies?expand"):
        if each["MainDicomTags"]["StudyInstanceUID"] == study:
            for series in each["Series"]:
                found[get_json(ARCHIVE, f"/series/{series}")["MainDicomTags"]["Modality"]] += 1
    return found


def gateway_upgraded(up: Site, first: Counter[str]) -> dict[str, float]:
    """Another image, the same volume: it knows each image that it had, and delivers nothing of them again.

    A second study goes in behind what is sent again, and whatever came of that would come before its results.
    """
    before = inspect(up.name("gateway"))["Image"]
    with upgraded("equipoise/gateway"):
        up.compose("up", "--detach", "--no-build", "--force-recreate", "gateway")
        if inspect(up.name("gateway"))["Image"] == before:
            raise Wrong("the gateway still runs the image from before the upgrade")
        up.ready(["gateway"])
        again = images()
        if statuses := set(send(DICOM, again)) - {0}:
            raise Wrong(f"the upgraded gateway did not take every image: {statuses}")
        if arrives(images(".1")) != first:
            raise Wrong("a study with the same pixels has other results after the upgrade")
        counted = instances(up)
        uid = str(pydicom.dcmread(io.BytesIO(again[0]), stop_before_pixels=True).StudyInstanceUID)
        if counted != {"known": len(again), "taken": len(again)} or results(uid) != first:
            raise Wrong(f"what was sent again was not recognised: {counted}, {results(uid)}")
    return counted


def instances(up: Site) -> dict[str, float]:
    """What the gateway says that became of the images since it started."""
    found = {}
    for line in asked(up, "metrics").splitlines():
        if line.startswith("equipoise_gateway_instances_total{"):
            found[line.split('"')[1]] = float(line.split()[-1])
    return found


def asked(up: Site, path: str) -> str:
    """The gateway's port for those that watch, which is not published; an error's body as well."""
    script = (
        "import sys, urllib.request as u, urllib.error as e\n"
        "try: print(u.urlopen(sys.argv[1], timeout=10).read().decode())\n"
        "except e.HTTPError as error: print(error.read().decode())"
    )
    return podman("exec", up.name("gateway"), "python", "-c", script, f"http://127.0.0.1:8046/{path}")


def worklist(up: Site) -> int | str:
    """A study that an expert has to see, as it is shown to one who signed in: cases in the list, and worklist.png."""
    arrives(images(".2", shuffled=True), frozenset({"SR"}))
    if not shutil.which("chromium"):
        return "Chromium is not installed"
    from playwright.sync_api import sync_playwright

    from ..support.review_page import CHROMIUM

    command = ["equipoise", "review", "/etc/equipoise/gateway.toml", "--new-reviewer", "dr.who"]
    token = podman("exec", up.name("review"), *command).split()[-1]
    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(CHROMIUM))
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"http://127.0.0.1:{REVIEW}/", timeout=60e3)
        page.get_by_label("Your token").fill(token)
        page.keyboard.press("Enter")
        page.locator("article").first.wait_for(timeout=60e3)
        page.screenshot(path=BUILD / "worklist.png", full_page=True)
        count = page.locator("article").count()
        browser.close()
    if problems or not count:
        raise Wrong(f"the worklist shows {count} cases; its page says {problems}")
    return count


def viewed(up: Site) -> bool:
    """Whether OHIF is there; Raises Wrong where it is and shows nothing."""
    viewer = up.name("viewer") in podman("ps", "--format", "{{.Names}}").split()
    if viewer and b"<html" not in get(VIEWER, "/").lower():
        raise Wrong("OHIF's page is not served")
    if viewer and not get_json(VIEWER, "/dicom-web/studies"):
        raise Wrong("OHIF's origin does not reach the archive")
    return viewer


def disk_full(target: object, note: Note) -> str:
    """The gateway's volume is full: images are refused, so their sender keeps them; with room again all goes on."""
    with site(ARRIVING, volumes={"gateway": 192}) as up:
        filling = ["sh", "-c", "head -c 200M /dev/zero > /var/lib/equipoise/filling"]
        full = run(["podman", "exec", up.name("gateway"), *filling])
        if "No space left" not in full.stderr:
            raise Wrong(f"the volume could not be filled: {full.stderr[-300:]}")
        statuses = set(send(DICOM, images()))
        health = json.loads(asked(up, "ready"))
        note("full", {"statuses": sorted(map(hex, statuses)), "accepting": health["accepting"]})
        if statuses != {OUT_OF_RESOURCES} or health["accepting"] or not up.healthy("gateway"):
            raise Wrong(f"a full disk: C-STORE gives {statuses}, /ready {health}; it has to refuse, and stay alive")
        podman("exec", up.name("gateway"), "rm", "/var/lib/equipoise/filling")
        found = arrives(images())
        note("with room again", dict(found))
        if instances(up) != {"refused": len(images()), "taken": len(images())}:
            raise Wrong(f"the gateway counted {instances(up)}")
        killed(up, "gateway")
        note("after a kill", dict(arrives(images(".1"))))
    return "a full disk refuses images (0xA700), room again lets the study through; killed, the gateway comes back"
