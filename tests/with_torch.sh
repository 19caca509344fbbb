#!/usr/bin/env bash
# Runs a Python script with torch, timm, mergekit, PEFT, transformers, diffusers, DeepSpeed, Megatron Core, Lightning,
# lm-evaluation-harness and libraries of quantized weights, from one virtual environment that is made once. Where there is no
# Python, or they cannot be installed, it says so and succeeds: the script is an extra.
#   tests/with_torch.sh SCRIPT [ARGUMENT ...]
set -euo pipefail

environment="${VLMERGE_TORCH_ENV:-${XDG_CACHE_HOME:-$HOME/.cache}/vlmerge/torch}"
python="$environment/bin/python"
packages=(torch==2.8.0 mergekit==0.1.5 peft==0.21.2 transformers==5.24.0 bitsandbytes==0.50.2
    compressed-tensors==0.15.0.1 timm==1.0.31 torchvision==0.23.0 diffusers==0.35.2 lycoris_lora==4.1.3 gguf==0.19.0
    msgpack==1.2.4 onnx==1.23.2 h5py==3.16.0 scipy==1.17.1 lm_eval==0.4.13 numpy safetensors wheel==0.45.1)

# DeepSpeed is built against the torch that is there, without the parts that are compiled. Megatron asks for an older numpy than
# the others, and does without. Lightning comes without what it logs and plots with.
deepspeed=deepspeed==0.19.2
alone=(megatron-core==0.12.3 lightning==2.5.5 lightning-utilities==0.15.3 torchmetrics==1.9.0)

# Importing all of them takes half a minute: it is done once, and what was found is written down.
wanted="${packages[*]} $deepspeed ${alone[*]}"
complete="$environment/complete"
if [ "$(cat "$complete" 2>/dev/null)" != "$wanted" ]; then
    if ! command -v python3 >/dev/null; then
        echo "SKIPPED: $1 needs Python, and there is none on this machine"
        exit 0
    fi
    echo "installing $wanted into $environment"
    if ! { python3 -m venv "$environment" &&
        "$python" -m pip install --quiet "${packages[@]}" &&
        DS_BUILD_OPS=0 DS_ACCELERATOR=cpu "$python" -m pip install --quiet --no-build-isolation "$deepspeed" &&
        "$python" -m pip install --quiet --no-deps "${alone[@]}" &&
        "$python" -c 'import bitsandbytes, compressed_tensors, diffusers, gguf, h5py, lycoris, mergekit, msgpack, numpy, onnx, peft, safetensors, scipy, timm, torch, torchvision, transformers; from importlib.util import find_spec; assert all(find_spec(name) for name in ["deepspeed", "megatron.core", "lightning", "lm_eval"])'; }; then
        echo "SKIPPED: $1 needs torch and mergekit, which could not be installed"
        exit 0
    fi
    printf '%s\n' "$wanted" > "$complete"
fi
exec "$python" "$@"
