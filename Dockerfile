# One image for all of Safelight's programs: serve, probe, inbox, simulate.
#   docker build --build-arg TORCH=cpu .    without a GPU: PyTorch's CPU build, several gigabytes less
# PIP_* reach pip, for a mirror, or for wheels of one's own from the folder `wheels` beside this file, which lands in /build.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG TORCH
ARG PIP_INDEX_URL
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS
ARG PIP_CERT
WORKDIR /build
COPY requirements.lock pyproject.toml LICENSE wheel[s] ./
# PyTorch comes first and alone, so that what follows is content with its build; the project itself is empty here.
RUN python3 -m venv /opt/safelight \
    && pip="/opt/safelight/bin/pip --disable-pip-version-check install --quiet --no-cache-dir" \
    && $pip "$(grep '^pip==' requirements.lock)" \
    && $pip --no-deps ${TORCH:+--index-url https://download.pytorch.org/whl/$TORCH} "$(grep '^torch==' requirements.lock)" \
    && $pip --constraint requirements.lock '.[postgres,s3]'

FROM ${BASE}
COPY --from=build /opt/safelight /opt/safelight
WORKDIR /app
COPY LICENSE ./
COPY service service
COPY observability observability
COPY docs/runbooks docs/runbooks
COPY models models
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin safelight && install -d -o safelight /data
USER 10001
ENV PATH=/opt/safelight/bin:$PATH PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 \
    SAFELIGHT_DATA_DIR=/data HF_HOME=/data/huggingface
EXPOSE 8000 8001 8002 9000
ENTRYPOINT ["safelight"]
CMD ["serve"]
