# cosmos_nemo inside NVIDIA's NeMo container. See docs/container.md.
# 25.11 is the container whose Megatron-core is 0.15; an older one is refused by the last step.
ARG NEMO_IMAGE=nvcr.io/nvidia/nemo:25.11
FROM ${NEMO_IMAGE}

WORKDIR /opt/cosmos_nemo
COPY . .

# The container's torch, Megatron-core, Transformer Engine and NeMo are left as they are: nothing that is
# installed is touched, and what is missing comes without its dependencies.
SHELL ["/bin/bash", "-o", "errexit", "-o", "pipefail", "-c"]
RUN python -m pip install --no-cache-dir --no-deps --editable . \
    && for package in diffusers einops imageio imageio-ffmpeg tqdm; do \
        python -m pip show --quiet "${package}" \
        || python -m pip install --no-cache-dir --no-deps --constraint constraints.txt "${package}"; \
    done

RUN python -c "import cosmos_nemo, cosmos_nemo_recipes"
