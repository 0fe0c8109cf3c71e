#!/usr/bin/env bash
# Installs the system packages that the project needs and this machine lacks (Debian, Ubuntu; as root).
# Elsewhere it names them and goes on: whoever lacks one is told by the part that needs it.
set -euo pipefail

declare -A wanted=(   # program → Debian package that has it, and who needs it
    [git]=git             # tests: files under version control
    [strace]=strace       # tests: no outgoing connection is made
)
missing=()
for program in "${!wanted[@]}"; do
    command -v "$program" >/dev/null || missing+=("${wanted[$program]}")
done
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
else
    echo "These system packages are not there: ${missing[*]}. Install them for the parts that use them." >&2
fi
