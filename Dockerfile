# syntax=docker/dockerfile:1
#
#   docker build -t tiller .                       for the CPU
#   docker build -t tiller:cuda --target cuda .    for NVIDIA GPUs
#
# PyPI's torch works for both. For a much smaller CPU image, name PyTorch's index of CPU wheels:
#   docker build -t tiller --build-arg TORCH_INDEX=URL .
# For `tiller cluster`, which needs Ray: --build-arg EXTRAS=otel,cluster.
# A registry of yours may have the base: --build-arg BASE=registry.example/python:3.12-slim
ARG BASE=python:3.12-slim

# Installs Tiller, and compiles the CPU kernels for several kinds of processors. So the images need no C++ compiler.
FROM ${BASE} AS build
ARG TORCH_INDEX=""
ARG EXTRAS=""
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /opt/source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app ./app
COPY inference ./inference
COPY tiller ./tiller
RUN python -m pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
    --constraint constraints.txt ".[${EXTRAS:-otel}]"
# Afterwards, nothing reads torch's headers, which are for compilers, and the packages' tests.
RUN cd / && python -m inference.backends.cpu.build \
    && cd /opt/venv/lib/python3*/site-packages \
    && rm -rf torch/include torch/share torch/test \
    && find torch/bin -type f ! -name torch_shm_manager -delete \
    && find . -type d -name tests -prune -exec rm -rf {} +

FROM ${BASE} AS runtime
COPY --from=build /opt/venv /opt/venv
WORKDIR /opt/tiller
COPY configs ./configs
# Any user of group 0 may run the image, such as the arbitrary users of OpenShift.
RUN useradd --uid 10001 --gid 0 --no-create-home tiller \
    && mkdir --parents /var/cache/tiller /var/lib/tiller /run/tiller /etc/tiller \
    && chown tiller:0 /var/cache/tiller /var/lib/tiller /run/tiller \
    && chmod g=u /var/cache/tiller /var/lib/tiller /run/tiller

# The cache (models, kernels, steering directions), and the data (concepts that callers created, access tokens).
# Mount volumes to keep them. compose.yaml mounts a volume at /run/tiller, for Prometheus' access token.
# All else may be read-only: container engines always mount a writable /dev/shm, for small temporary files.
ENV PATH=/opt/venv/bin:$PATH \
    TILLER_CACHE_DIRECTORY=/var/cache/tiller \
    TILLER_DATA_DIRECTORY=/var/lib/tiller \
    HOME=/var/cache/tiller \
    TMPDIR=/dev/shm
VOLUME /var/cache/tiller /var/lib/tiller

EXPOSE 8000
# The start period allows for downloading and loading a large model.
HEALTHCHECK --interval=15s --timeout=10s --start-period=30m \
    CMD ["tiller", "health", "--config", "/etc/tiller/config.yaml"]

# Mount the configuration here; README.md shows how.
ENTRYPOINT ["tiller"]
CMD ["serve", "--config", "/etc/tiller/config.yaml"]

# Kubernetes can check only numbers for `runAsNonRoot`.
FROM runtime AS cpu
USER 10001:0

FROM runtime AS cuda
# At the first start, Triton compiles a part of each kernel with a C compiler.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# The host provides the driver, through NVIDIA's container toolkit. torch brings the CUDA libraries.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TILLER_ENGINE__DEVICE=cuda
USER 10001:0

# The image of a build that names no target.
FROM cpu
