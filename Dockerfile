# syntax=docker/dockerfile:1
#
#   docker build -t tiller .                              for the CPU
#   docker build -t tiller --build-arg VARIANT=cuda .     for NVIDIA GPUs
#
# PyPI's torch works for both. For a much smaller CPU image, name PyTorch's index of CPU wheels:
#   docker build -t tiller --build-arg TORCH_INDEX=URL .
ARG VARIANT=cpu
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS cpu

FROM python:${PYTHON}-slim AS cuda
# The host provides the driver, through NVIDIA's container toolkit. torch brings the CUDA libraries.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TILLER_ENGINE__DEVICE=cuda

FROM ${VARIANT}
ARG TORCH_INDEX=""

# At the first start, Tiller compiles its CPU kernels for the processor of the machine. Triton needs a compiler too.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/tiller
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app ./app
COPY inference ./inference
COPY tiller ./tiller
COPY configs ./configs
RUN python -m pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
    --constraint constraints.txt '.[otel]'

RUN useradd --uid 10001 --create-home tiller \
    && mkdir --parents /var/cache/tiller /var/lib/tiller /run/tiller /etc/tiller \
    && chown tiller /var/cache/tiller /var/lib/tiller /run/tiller
USER tiller

# The cache (models, kernels, steering directions), and the data (concepts that callers created, access tokens).
# Mount volumes to keep them. compose.yaml mounts a volume at /run/tiller, for Prometheus' access token.
ENV TILLER_CACHE_DIRECTORY=/var/cache/tiller \
    TILLER_DATA_DIRECTORY=/var/lib/tiller
VOLUME /var/cache/tiller /var/lib/tiller

EXPOSE 8000
# The start period allows for downloading and loading a large model.
HEALTHCHECK --interval=15s --timeout=10s --start-period=30m \
    CMD ["tiller", "health", "--config", "/etc/tiller/config.yaml"]

# Mount the configuration here; README.md shows how.
ENTRYPOINT ["tiller"]
CMD ["serve", "--config", "/etc/tiller/config.yaml"]
