# The locked versions with the CPU build of torch. With CUDA: docker build --build-arg TORCH_INDEX= -t selfdistill .
FROM python:3.12-slim

# The sandbox for code that a model writes; make installs the lock.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/selfdistill
COPY pyproject.toml README.md LICENSE Makefile ./
COPY locks locks
COPY src src
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN make setup TORCH_INDEX="$TORCH_INDEX"

# Runs and data are the user's own folder: docker run -v "$PWD:/work" …
WORKDIR /work
ENTRYPOINT ["/opt/selfdistill/.venv/bin/selfdistill"]
CMD ["--help"]
