"""Stand-ins for the base images that no registry can be asked for here, under their real names, cached by content.

Root file systems are made by mmdebstrap from Debian's archive; each image adds what the real one has: its paths, user,
entrypoint, the signal that stops it. Triton is the one of the PyPI wheel at /opt/tritonserver. Its backend
`onnxruntime` is our stand-in for the native one, so that the published `cpu` configurations are served as they are.
What is executed in them is our Dockerfiles, compose files, chart and programs, not NVIDIA's image.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from ..support.steps import Absent
from .engine import ROOT, environment, has_image, podman

SUITE, ARCHIVE = "bookworm", "http://deb.debian.org/debian"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
ROOTS: Mapping[str, tuple[str, ...]] = {
    "python": ("libpython3.11", "python3", "python3-pip", "python3-venv"),
    # What INSTALL.md asks of a machine, a service manager, and other languages.
    "machine": ("make", "python3-venv", "libpython3.11", "openssl", "curl", "haproxy", "systemd-sysv", "locales"),
    "services": ("haproxy", "nginx-light", "orthanc", "orthanc-dicomweb", "prometheus", "prometheus-blackbox-exporter"),
}
"""Root file system → Debian's packages in it, beside the smallest Debian."""


@dataclass(frozen=True)
class Base:
    """One stand-in.

    Attributes:
        root: the root file system below it, of `ROOTS`.
        recipe: lines of its Containerfile after the first.
        files: what the recipe copies: name in the build's folder → file or folder of this machine.
    """

    root: str
    recipe: str
    files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of all that the image is made from; versions stand for folders of installed wheels."""
        parts = [SUITE, self.root, *ROOTS[self.root], self.recipe, *map(str, self.files)]
        parts += [file.read_text(errors="replace") for file in self.files.values() if file.is_file()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _wheel() -> Path:
    spec = find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise Absent("the wheel's Triton is not installed (extra `embedded`)")
    return Path(next(iter(spec.submodule_search_locations))).parent


def bases() -> Mapping[str, Base]:
    """Name as our files write it → how its stand-in is made."""
    wheel = _wheel()
    # The image's pip reaches what this machine's does, and may write where the real image's may.
    python = """\
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
RUN rm -f /usr/lib/python3*/EXTERNALLY-MANAGED && ln -s /usr/bin/python3 /usr/local/bin/python \\
    && printf '[global]\\ncert = /etc/ssl/certs/ca-certificates.crt\\n' > /etc/pip.conf
"""
    triton = f"""\
RUN useradd --uid 1000 --create-home triton-server \\
    && python3 -m pip install --no-cache-dir numpy=={metadata.version("numpy")} \\
        onnxruntime=={metadata.version("onnxruntime")}
# {metadata.version("nvidia-pytriton")}
COPY tritonserver /opt/wheel/pytriton/tritonserver
COPY libraries /opt/wheel/nvidia_pytriton.libs
COPY model.py /opt/wheel/pytriton/tritonserver/backends/onnxruntime/model.py
# The real one knows an option that this older server does not.
RUN ln -s /opt/wheel/pytriton/tritonserver /opt/tritonserver && cd /opt/tritonserver \\
    && mv bin/tritonserver bin/tritonserver.real && printf '%s\\n' '#!/bin/bash' 'words=()' \\
    'for word; do [[ $word = --allow-client-shm=* ]] || words+=("$word"); done' \\
    'exec "$0.real" "${{words[@]}}"' > bin/tritonserver && chmod +x bin/tritonserver \\
    && cp python_backend_stubs/3.11/triton_python_backend_stub backends/python/ && rm -r python_backend_stubs \\
    && chmod +x backends/python/triton_python_backend_stub && chown -R 1000:1000 /opt/wheel
# This older server changes its stub's mode at each start, whatever it was, which needs a place that can be written.
VOLUME /opt/wheel/pytriton/tritonserver/backends
"""
    # The real entrypoint merges ORTHANC_JSON with its own settings.
    orthanc = """\
RUN mkdir -p /var/lib/orthanc/db /etc/orthanc-stand-in && chown -R root:root /var/lib/orthanc \\
    && chmod -R 755 /var/lib/orthanc && printf '%s' '{"StorageDirectory": "/var/lib/orthanc/db", \\
"IndexDirectory": "/var/lib/orthanc/db", "Plugins": ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"]}' \\
    > /etc/orthanc-stand-in/own.json \\
    && printf '%s\\n' '#!/bin/sh' 'mkdir -p /tmp/orthanc && cp /etc/orthanc-stand-in/own.json /tmp/orthanc/' \\
    'printf %s "$ORTHANC_JSON" > /tmp/orthanc/site.json' 'exec Orthanc /tmp/orthanc' > /entrypoint.sh \\
    && chmod +x /entrypoint.sh
ENTRYPOINT ["/entrypoint.sh"]
"""
    return {
        "docker.io/library/python:3.11-slim": Base("python", python, {"ca-certificates.crt": AUTHORITIES}),
        "nvcr.io/nvidia/tritonserver:26.07-py3": Base(
            "python",
            python + triton,
            {
                "ca-certificates.crt": AUTHORITIES,
                "tritonserver": wheel / "pytriton" / "tritonserver",
                "libraries": wheel / "nvidia_pytriton.libs",
                "model.py": ROOT / "model_repository" / "pneumonia_sampler" / "1" / "model.py",
            },
        ),
        # The real one's entrypoint puts itself before HAProxy's own options, which the command holds.
        "docker.io/library/haproxy:2.6-alpine": Base(
            "services",
            "RUN groupmod --gid 99 haproxy && usermod --uid 99 haproxy\nSTOPSIGNAL SIGUSR1\nUSER haproxy\n"
            'ENTRYPOINT ["haproxy", "-W", "-db"]\n'
            'CMD ["-f", "/usr/local/etc/haproxy/haproxy.cfg"]\n',
        ),
        "docker.io/prom/prometheus:v2.55.1": Base(
            "services",
            "RUN mkdir /prometheus && chown nobody:nogroup /prometheus\nVOLUME /prometheus\nWORKDIR /prometheus\n"
            'USER nobody\nENTRYPOINT ["/usr/bin/prometheus"]\n',
        ),
        "docker.io/prom/blackbox-exporter:v0.25.0": Base(
            "services", 'ENTRYPOINT ["/usr/bin/prometheus-blackbox-exporter"]\n'
        ),
        "docker.io/orthancteam/orthanc:24.10.1": Base("services", orthanc),
        "docker.io/library/nginx:1.27-alpine": Base(
            "services", 'STOPSIGNAL SIGQUIT\nCMD ["nginx", "-g", "daemon off;"]\n'
        ),
    }


def make_root(name: str) -> bool:
    """The root file system as an image; whether it had to be made."""
    tag = f"localhost/root/{name}"
    packages = ",".join(("ca-certificates", *ROOTS[name]))
    label = hashlib.sha256(f"{SUITE} {packages}".encode()).hexdigest()[:16]
    if has_image(tag, label):
        return False
    with tempfile.TemporaryDirectory() as scratch:
        tar = Path(scratch) / "root.tar"
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", SUITE, str(tar), ARCHIVE]
        # The archive's copies of packages and lists go, as Debian's own images have it.
        done = subprocess.run(command, capture_output=True, text=True, env=dict(environment()))
        if done.returncode:
            raise Absent(f"Debian's archive did not give a root file system: {done.stderr[-500:]}")
        podman("import", "--quiet", "--change", f"LABEL equipoise.recipe={label}", tar, tag)
    return True


def make_base(name: str, base: Base) -> bool:
    """The stand-in under its real name; whether it had to be made."""
    if has_image(name, base.digest):
        return False
    make_root(base.root)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for target, source in base.files.items():
            if source.is_dir():
                shutil.copytree(source, folder / target)
            else:
                shutil.copyfile(source, folder / target)
        text = f"FROM localhost/root/{base.root}\nLABEL equipoise.recipe={base.digest}\n{base.recipe}"
        (folder / "Containerfile").write_text(text, encoding="utf-8")
        podman("build", "--quiet", "--network=host", "--tag", name, folder)
    return True
