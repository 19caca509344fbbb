#!/usr/bin/env bash
# Runs a Python script with torch, from a virtual environment that is made once. Where there is no
# Python, or torch cannot be installed, it says so and succeeds: the script is an extra.
#   tests/with_torch.sh SCRIPT [ARGUMENT ...]
set -euo pipefail

environment="${VLMERGE_TORCH_ENV:-${XDG_CACHE_HOME:-$HOME/.cache}/vlmerge/torch}"
python="$environment/bin/python"

if ! "$python" -c 'import torch, safetensors, numpy' 2>/dev/null; then
    if ! command -v python3 >/dev/null; then
        echo "SKIPPED: $1 needs Python, and there is none on this machine"
        exit 0
    fi
    echo "installing torch into $environment"
    if ! { python3 -m venv "$environment" &&
        "$python" -m pip install --quiet torch==2.8.0 numpy safetensors; }; then
        echo "SKIPPED: $1 needs torch, which could not be installed"
        exit 0
    fi
fi
exec "$python" "$@"
