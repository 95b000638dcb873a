# Serves the page on port 7860 as uid 1000. No GPU is needed at build time.
FROM python:3.12-slim

RUN useradd -m -u 1000 user
USER user
ENV HOME=/home/user \
    PATH=/home/user/.local/bin:$PATH \
    PYTHONUNBUFFERED=1
WORKDIR /home/user/app

# For a smaller image without CUDA pass the index of PyTorch's CPU builds:
# docker build --build-arg PIP_EXTRA_INDEX_URL=... .
ARG PIP_EXTRA_INDEX_URL=
COPY --chown=user requirements.txt .
RUN pip install --no-cache-dir --user -r requirements.txt

COPY --chown=user . .

# One thread: with more, OpenMP's spinning threads slow a shared two-core host down many times over.
ENV OMP_NUM_THREADS=1 \
    OMP_WAIT_POLICY=passive \
    GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_ANALYTICS_ENABLED=False

EXPOSE 7860
CMD ["python", "app.py", "--host", "0.0.0.0", "--port", "7860"]
