# docker build -t areir .                        # for CPUs
# docker build -t areir --build-arg TORCH=cu128 .  # for NVIDIA GPUs: run with --gpus all
# docker build --target check .                  # runs the two commands of the README
#
# docker run --rm -v ~/photos:/photos:ro -v ~/areir:/areir/results areir \
#     python inference.py --gallery /photos --query_img_name /photos/one.jpg

FROM python:3.12-slim AS installed
ARG TORCH=cpu
ENV VENV=/opt/venv HOME=/home/areir
ENV PATH=$VENV/bin:$PATH
WORKDIR /areir
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*
COPY requirements.txt ./
# hadolint ignore=DL3013
RUN python -m venv "$VENV" \
    && pip install --no-cache-dir torch torchvision \
        --index-url "https://download.pytorch.org/whl/$TORCH" \
    && pip install --no-cache-dir -r requirements.txt
COPY . .
RUN make PYTHON=python "$VENV/.installed" && rm -rf "$HOME/.cache"
# any user may write here, also one that docker run --user names
RUN useradd --no-create-home --home-dir "$HOME" areir \
    && mkdir -p "$HOME" && chmod 1777 "$HOME" /areir /areir/data /areir/results
USER areir

FROM installed AS check
RUN make demo && make test

FROM installed
CMD ["python", "train.py", "--help"]
