# Trains: the versions of uv.lock, whose torch brings CUDA along; the host needs NVIDIA's driver and container toolkit.
#
#   docker build -t detronome .
#   docker run --rm --gpus all detronome doctor
#   docker run --init --gpus all --shm-size 16g -v /data/coco:/data:ro -v "$PWD/runs:/runs" \
#     detronome train /data --model detr-r50 --out coco-r50 --if-exists resume
#   docker run ... --entrypoint torchrun detronome --nproc-per-node=8 -m detronome train /data ...
#
# --shm-size: loader processes hand batches over through /dev/shm; a container has 64 MB of it by default.
# /runs belongs to the user in the container: to write into your own folder, build with --build-arg UID=$(id -u).
# `docker stop -t 120` gives a run the time to save. Other extras: --build-arg EXTRAS="--extra wandb --extra cloud".
# train.compile needs a C++ compiler, which this image does without. To serve a model: docs/serving/Dockerfile.
FROM python:3.12-slim AS build

RUN pip install --no-cache-dir uv==0.13.8
ENV UV_PROJECT_ENVIRONMENT=/opt/detronome UV_PYTHON_DOWNLOADS=never UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1
ARG EXTRAS="--extra demo --extra tensorboard"
WORKDIR /source

# What others make first: it is gigabytes, and stays as it is while only our own code changes.
COPY pyproject.toml uv.lock ./
# hadolint ignore=SC2086
RUN uv sync --locked --no-dev ${EXTRAS} --no-install-project

COPY README.md LICENSE ./
COPY src/ src/
# hadolint ignore=SC2086
RUN uv sync --locked --no-dev ${EXTRAS} --no-editable

FROM python:3.12-slim

ARG UID=1000
RUN useradd --create-home --uid ${UID} detronome \
    && install --directory --owner detronome /runs
COPY --from=build /opt/detronome /opt/detronome
ENV PATH=/opt/detronome/bin:$PATH
USER ${UID}
WORKDIR /runs

ENTRYPOINT ["detronome"]
CMD ["--help"]
