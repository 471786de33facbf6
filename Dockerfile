# kit in an image:      docker build -t kit .
# with CUDA, for GPUs:  docker build -t kit:cuda --build-arg TORCH=cuda .
# use:                  docker run --rm -v "$PWD:/data" --user "$(id -u):$(id -g)" kit map city.tif   (GPUs: --gpus all)
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
ARG TORCH=cpu
COPY . /src
RUN sh /src/scripts/install.sh /opt/kit "${TORCH}"

FROM ${BASE}
# GDAL in the wheels of rasterio needs it; slim images lack it
RUN apt-get update && apt-get install -y --no-install-recommends libexpat1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/kit /opt/kit
# caches of matplotlib and torch: a user without a home writes there
ENV PATH=/opt/kit/bin:$PATH HOME=/tmp
WORKDIR /data
ENTRYPOINT ["kit"]
