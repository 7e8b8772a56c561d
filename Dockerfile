# Diff-Restorer in a container: docs/install.md.
#
#   docker build -t diffrestorer .                                   PyTorch for CPUs
#   docker build -t diffrestorer --build-arg TORCH=cuda .            PyTorch with CUDA
#   docker build -t diffrestorer-tests --target tests .              what the test suite needs
#
# tests/test_dockerfile.py runs the RUN steps as a script.

FROM python:3.11-slim AS base
ARG TORCH=cpu
ENV HOME=/tmp
WORKDIR /app
COPY . .
RUN python -m venv .venv && .venv/bin/pip install -q -c constraints.txt uv
RUN --mount=type=cache,target=/tmp/.cache/uv if [ "$TORCH" = cpu ]; then export UV_TORCH_BACKEND=cpu; fi; \
    .venv/bin/uv pip install --python .venv/bin/python ".[app,heic]" -c constraints.txt

FROM base AS tests
# pyiqa, of the extra eval, brings an OpenCV that wants a screen's libraries.
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends libgl1 libglib2.0-0 && rm -rf /var/lib/apt/lists/*
RUN --mount=type=cache,target=/tmp/.cache/uv if [ "$TORCH" = cpu ]; then export UV_TORCH_BACKEND=cpu; fi; \
    .venv/bin/uv pip install --python .venv/bin/python -e ".[eval,train,lora,app,onnx,heic,dev]" -c constraints.txt
ENTRYPOINT ["/app/.venv/bin/python", "-m", "pytest", "-q"]
CMD ["-m", "not soak"]

FROM base
ENTRYPOINT ["/app/.venv/bin/diffrestorer"]
CMD ["--help"]
