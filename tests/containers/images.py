"""Stand-ins for base images, and our own images built on them from the Dockerfiles as they are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from ..support.steps import Note, Wrong
from .bases import bases, make_base, make_root
from .engine import has_image, podman

OURS: Mapping[str, str] = {"equipoise/server": "deploy/Dockerfile", "equipoise/gateway": "deploy/gateway.Dockerfile"}


def stand_ins(target: object, note: Note) -> str:
    """Those that are not there yet, or are made in another way by now, and the machine of plain Debian."""
    make_root("machine")
    made = [name for name, base in bases().items() if make_base(name, base)]
    note("made", made)
    return f"{len(bases())} base images are stand-ins, {len(made)} of them made now"


def server(target: object, note: Note) -> str:
    """deploy/Dockerfile; what has not changed is taken from the engine's own cache of layers."""
    return _built("equipoise/server", note)


def gateway(target: object, note: Note) -> str:
    """deploy/gateway.Dockerfile."""
    return _built("equipoise/gateway", note)


def _built(name: str, note: Note) -> str:
    """With wheels from the lock."""
    podman("build", "--quiet", "--network=host", "--file", OURS[name], "--tag", name, ".")
    note(name, _seen(name))
    return f"{OURS[name]} built unchanged; user 1000, health check and entrypoint are as written"


def _seen(name: str) -> Mapping[str, object]:
    """What the engine says of an image. Raises Wrong where it runs as root or has no health check."""
    (image,) = json.loads(podman("image", "inspect", name))
    config = image["Config"]
    if config["User"] != "1000:1000" or ("Healthcheck" not in image and "Healthcheck" not in config):
        raise Wrong(f"{name}: user {config['User']}, health check {image.get('Healthcheck')}")
    return {"MB": round(image["Size"] / 1e6), "command": [*config["Entrypoint"], *config["Cmd"]][:5]}


@contextmanager
def upgraded(name: str) -> Iterator[None]:
    """Under the name is another image while this runs, as after a new build: the same files, another identity."""
    before = podman("image", "inspect", "--format", "{{.Id}}", name).strip()
    recipe = f"FROM {before}\nLABEL equipoise.upgrade=next\n"
    try:
        podman("build", "--quiet", "--tag", name, "--file", "-", "deploy/systemd", input=recipe)
        yield
    finally:
        podman("tag", before, name)


def require_images(names: Iterable[str] = OURS) -> None:
    """Raises Wrong where one has not been built."""
    if absent := [name for name in names if not has_image(name)]:
        raise Wrong(f"{', '.join(absent)}: not built; run the steps before this one")
