#!/usr/bin/env bash
# A PACS and a viewer to try results with: Orthanc and OHIF on this machine, for this machine only, until Ctrl-C.
#
#   deploy/viewer/trial.sh [FOLDER]      # what Orthanc stores goes to FOLDER (build/trial)
#
#   equipoise send study/ results/ --to http://127.0.0.1:8043/dicom-web       then open http://127.0.0.1:8090
#
# VIEWER_PORT, ORTHANC_PORT and DICOM_PORT choose other ports. Not for patients' data: there is no authentication.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
storage=$(realpath --canonicalize-missing "${1:-$root/build/trial}")
viewer_port=${VIEWER_PORT:-8090} orthanc_port=${ORTHANC_PORT:-8043} dicom_port=${DICOM_PORT:-4243}
PATH=$PATH:/usr/sbin

for program in Orthanc nginx npm; do
    command -v "$program" >/dev/null || { echo "$program is missing: run deploy/system-packages.sh as root" >&2; exit 1; }
done
bash "$here/fetch.sh" "$root/build/viewer"
run=$(mktemp -d)
mkdir -p "$storage"

# Orthanc 1.10 listens on every interface, whatever its configuration says. So it answers HTTP from this machine alone
# (RemoteAccessAllowed), and over DICOM it knows nobody but this machine.
cat > "$run/orthanc.json" <<EOF
{
    "Name": "Equipoise trial",
    "StorageDirectory": "$storage", "IndexDirectory": "$storage",
    "HttpPort": $orthanc_port, "RemoteAccessAllowed": false, "AuthenticationEnabled": false,
    "DicomPort": $dicom_port, "DicomAet": "ORTHANC",
    "DicomAlwaysAllowEcho": false, "DicomAlwaysAllowStore": false, "DicomAlwaysAllowFind": false,
    "DicomCheckModalityHost": true, "DicomModalities": { "equipoise": ["EQUIPOISE", "127.0.0.1", 104] },
    "Plugins": ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"],
    "DicomWeb": { "Enable": true, "Root": "/dicom-web/" }
}
EOF
sed -e "s|@RUN@|$run|g" -e "s|@PORT@|$viewer_port|g" -e "s|@VIEWER@|$root/build/viewer/package/dist|g" \
    -e "s|@CONFIG@|$here/app-config.js|g" -e "s|@ORTHANC@|http://127.0.0.1:$orthanc_port|g" \
    "$here/nginx.conf" > "$run/nginx.conf"
# Started by root, nginx would read the files as a user that may not see this checkout.
[ "$(id -u)" -ne 0 ] || sed -i '1i user root;' "$run/nginx.conf"

Orthanc "$run/orthanc.json" > "$run/orthanc.log" 2>&1 &
orthanc=$!
nginx -c "$run/nginx.conf" 2>> "$run/nginx.error.log" &
nginx=$!
trap 'kill "$orthanc" "$nginx" 2>/dev/null || true; wait || true; rm -rf "$run"' EXIT
trap 'exit 0' INT TERM
echo "viewer   http://127.0.0.1:$viewer_port"
echo "DICOMweb http://127.0.0.1:$orthanc_port/dicom-web"
echo "DICOM    dicom://ORTHANC@127.0.0.1:$dicom_port   (calling AE title EQUIPOISE)"
if ! wait -n "$orthanc" "$nginx"; then
    tail -n 5 "$run/orthanc.log" "$run/nginx.error.log" >&2
    exit 1
fi
