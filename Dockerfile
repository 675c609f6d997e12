# The server on a CPU. Build and run:
#
#     docker build -t shoplens .
#     docker run -p 8000:8000 -v "$PWD/shop-index:/indexes/shop:ro" -v "$PWD/pictures:$PWD/pictures:ro" \
#         shoplens /indexes/shop --token-file /run/secrets/token
#
# Pictures of products are read from the paths that they had when they were indexed: mount them there.
#
# On a GPU: docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 \
#     --build-arg EXTRAS=gpu,serve -t shoplens:gpu .   and run with --gpus all
FROM python:3.12-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=cpu,serve

# OpenMP, which FAISS and torch use.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
# First what changes seldom: torch is the largest layer by far.
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch>=2.6,<2.14" "torchvision>=0.21,<0.29"
COPY pyproject.toml README.md LICENSE shoplens.py ./
COPY indexing indexing
COPY search search
COPY training training
COPY benchmarks benchmarks
RUN pip install --no-cache-dir ".[$EXTRAS]"

# Volumes that are mounted here take their owner from these folders.
RUN useradd --create-home --uid 10001 shoplens \
    && install -d -o shoplens -g shoplens /feedback /home/shoplens/.cache
USER shoplens
WORKDIR /home/shoplens
ENV PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD \
    ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["shoplens", "serve", "--host", "0.0.0.0"]
CMD ["--help"]
