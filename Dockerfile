# cosmos_nemo inside NVIDIA's NeMo container. See docs/container.md.
# Designed for 25.11, by NVIDIA's table: torch 2.9.0, megatron-core 0.15.0, transformer-engine 2.9, nemo_toolkit 2.6.0,
# nemo_run 0.7.0, Python 3.12 (.ci/container/pins.toml). The original documents' nemo:cosmos.1.0 is too old: its
# Megatron-core is of before 0.11. An older Megatron-core than 0.15 is refused by the last step.
ARG NEMO_IMAGE=nvcr.io/nvidia/nemo:25.11
FROM ${NEMO_IMAGE}

# Tells `make container-test` that it runs inside.
ENV COSMOS_NEMO_IMAGE=1
WORKDIR /opt/cosmos_nemo
COPY . .

# The container's torch, Megatron-core, Transformer Engine and NeMo are left as they are: nothing that is
# installed is touched, and what is missing comes without its dependencies. NVIDIA's images have a list of versions
# in PIP_CONSTRAINT, which would also hold for what builds this package.
SHELL ["/bin/bash", "-o", "errexit", "-o", "pipefail", "-c"]
RUN export PIP_CONSTRAINT= \
    && python -m pip install --no-cache-dir --no-deps --editable . \
    && for package in transformers diffusers huggingface_hub safetensors numpy einops imageio imageio-ffmpeg pillow \
        tqdm better-profanity; do \
        python -m pip show --quiet "${package}" \
        || python -m pip install --no-cache-dir --no-deps --constraint constraints.txt "${package}"; \
    done

RUN python -P -c "import cosmos_nemo, cosmos_nemo_recipes"
