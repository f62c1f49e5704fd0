# syntax=docker/dockerfile:1
#
#   docker build -t tiller .                              for the CPU
#   docker build -t tiller --build-arg VARIANT=cuda .     for NVIDIA GPUs
#
# PyPI's torch serves both; for a much smaller CPU image, name PyTorch's CPU wheel index:
#   docker build -t tiller --build-arg TORCH_INDEX=URL .
ARG VARIANT=cpu
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS cpu

FROM python:${PYTHON}-slim AS cuda
# The driver comes from the host, through NVIDIA's container toolkit; CUDA's libraries come with torch.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TILLER_ENGINE__DEVICE=cuda

FROM ${VARIANT}
ARG TORCH_INDEX=""

# torch compiles kernels for the machine that it finds.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/tiller
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app ./app
COPY inference ./inference
COPY configs ./configs
RUN python -m pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
    --constraint constraints.txt '.[otel]'

RUN useradd --uid 10001 --create-home tiller \
    && mkdir --parents /var/cache/tiller /var/lib/tiller /etc/tiller \
    && chown tiller /var/cache/tiller /var/lib/tiller
USER tiller

# Downloaded and converted models, and the concepts that callers created; mount volumes to keep them.
ENV TILLER_CACHE_DIRECTORY=/var/cache/tiller \
    TILLER_DATA_DIRECTORY=/var/lib/tiller
VOLUME /var/cache/tiller /var/lib/tiller

EXPOSE 8000
# Long enough for a large model to be downloaded and loaded.
HEALTHCHECK --interval=15s --timeout=10s --start-period=30m \
    CMD ["tiller", "health", "--config", "/etc/tiller/config.yaml"]

# The configuration, with the tokens' digests, is mounted: see README.md.
ENTRYPOINT ["tiller"]
CMD ["serve", "--config", "/etc/tiller/config.yaml"]
