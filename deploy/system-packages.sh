#!/usr/bin/env bash
# Installs the system packages that the project needs and this machine lacks (Debian, Ubuntu; as root).
# On other systems it lists them and continues: each part reports what it lacks.
#
#     system-packages.sh [base]      base: only what an environment and the demo need
set -euo pipefail

declare -A wanted=(   # program → Debian packages that have it, and who needs it
    [git]=git             # tests: files under version control
    [strace]=strace       # tests: no outgoing connection is made
    [ip]=iproute2         # tests: a PACS in a network of its own
    [Orthanc]="orthanc orthanc-dicomweb"  # tests and trials: the PACS
    [dsr2html]=dcmtk      # tests: reads reports, compresses and sends
    [dciodvfy]=dicom3tools  # tests: attributes as the standard has them
    [nginx]=nginx         # tests and trials: serves the viewer beside the PACS
    [haproxy]=haproxy     # tests: the reverse proxy with mutual TLS
    [prometheus]=prometheus  # tests: rules, alerts and dashboard on real measurements; brings promtool
    [curl]=curl           # the install page
    [openssl]=openssl     # the install page: the releases' keys
    [systemd-analyze]=systemd  # tests: units
    [chromium]=chromium   # tests: pages as people see them
    [npm]=npm             # tests and trials: brings the viewer
    [podman]="podman runc catatonit netavark aardvark-dns"  # tests: `make containers`
    [iptables]=iptables   # its networks
    [mmdebstrap]=mmdebstrap  # its stand-ins for base images
)
[ "${1:-}" = base ] && wanted=()
missing=()
for program in "${!wanted[@]}"; do
    # Daemons lie in /usr/sbin, which is not on everybody's PATH.
    PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null || missing+=(${wanted[$program]})
done
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
# Triton's Python processes load Python as a library, which a distribution's own does not bring.
python3 -c 'import ctypes, sys; sys.base_prefix == "/usr" and ctypes.CDLL("libpython%d.%d.so.1.0" % sys.version_info[:2])' \
    2>/dev/null || missing+=("libpython$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')")
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    # Debian starts a daemon when it installs it, and these listen on every interface: not now, and not after a restart.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' > "$policy"
        chmod +x "$policy"
    fi
    apt-get update -qq
    apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
    if command -v systemctl >/dev/null; then
        for unit in orthanc nginx haproxy prometheus; do
            [[ " ${missing[*]} " == *" $unit"* ]] && systemctl disable --quiet "$unit.service" 2>/dev/null || true
        done
    fi
else
    echo "These system packages are not there: ${missing[*]}. Install them for the parts that use them." >&2
fi
