#!/usr/bin/env bash
# Brings the prebuilt OHIF viewer from npm, once: fetch.sh FOLDER. Its files are in FOLDER/package/dist afterwards.
set -euo pipefail
version=3.13.2
digest=b189d3963bfc58e9394a9db8c7be75d07beb029ec211dbb126d47b62969dd3f1 # SHA-256 of the package's tar file
folder=${1:?usage: fetch.sh FOLDER}

mkdir -p "$(dirname "$folder")"
exec 9>"$folder.lock"
flock 9 # who comes second finds it there
[ -e "$folder/.complete-$version" ] && exit 0
command -v npm >/dev/null || { echo "npm is missing: run deploy/system-packages.sh as root" >&2; exit 1; }
rm -rf "$folder"
mkdir -p "$folder"
(cd "$folder" && npm pack --silent "@ohif/app@$version" >/dev/null)
echo "$digest  $folder/ohif-app-$version.tgz" | sha256sum --check --quiet -
tar --extract --gzip --file "$folder/ohif-app-$version.tgz" --directory "$folder" --exclude '*.map'
rm "$folder/ohif-app-$version.tgz"
touch "$folder/.complete-$version"
