# `equipoise gateway` and `equipoise review`: DICOM studies in, results and the worklist out. No torch, no Triton.
# Built from the project's root:
#
#   docker build --file deploy/gateway.Dockerfile --tag equipoise/gateway .
#
# For production pin what was validated: --build-arg PYTHON_DIGEST=@sha256:…
# `make containers` builds it, on a stand-in for the base image. hadolint finds nothing.
ARG PYTHON_VERSION=3.11
ARG PYTHON_DIGEST=

FROM python:${PYTHON_VERSION}-slim${PYTHON_DIGEST} AS build
WORKDIR /source
COPY . .
RUN python -m venv /opt/equipoise \
    && python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheel . \
    && /opt/equipoise/bin/pip install --no-cache-dir --constraint deploy/locks/constraints.txt "$(ls /wheel/*.whl)[clinic]" \
    && /opt/equipoise/bin/python -m compileall -q /opt/equipoise

FROM python:${PYTHON_VERSION}-slim${PYTHON_DIGEST}

COPY --from=build /opt/equipoise /opt/equipoise
ENV ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    PATH=/opt/equipoise/bin:$PATH

# Patient data lies in the one volume, and nowhere else.
RUN install --directory --owner=1000 --group=1000 --mode=0700 /var/lib/equipoise /var/lib/equipoise-audit \
    && install --owner=1000 --group=1000 --mode=0600 /dev/null /var/lib/equipoise-audit/decisions.jsonl
VOLUME /var/lib/equipoise
USER 1000:1000
EXPOSE 8044 8046 11112

# Whether it lives. A full disk is no reason to start it again: then /ready is 503 and says why.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD \
    ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8046/live', timeout=4)"]

ENTRYPOINT ["equipoise"]
CMD ["gateway", "/etc/equipoise/gateway.toml"]
