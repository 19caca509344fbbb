#!/usr/bin/env bash
# Makes the folder that tests/gpu/day.sh needs on a card's machine: the programs, stripped and packed, in target/gpu. Inputs and expected
# numbers are those of fixtures/, which a copy of the tree has.
#
#   tests/gpu/prepare.sh [--device cuda|cpu]
#
# With cuda it links against the toolkit, or its Python wheels where there is no nvcc (about 680 MB, kept in VLMERGE_CUDA_TOOLKIT), and a
# stub of the driver's library, which no wheel holds. CUDA_COMPUTE_CAP is the card's [default: 90, of H100 and H200]; CARGO_TARGET_DIR says
# where it builds. With cpu it makes target/gpu-cpu of the ordinary build, to try the day.
set -euo pipefail
cd "$(dirname "$0")/../.."
export CARGO_TERM_COLOR=never
device=cuda
[ "${1:-}" = --device ] && device="$2"
build="${CARGO_TARGET_DIR:-target}"

features=()
kit=target/gpu-cpu
if [ "$device" = cuda ]; then
    kit=target/gpu
    features=(--features cuda)
    root="$(.ci/cuda-toolkit --to-link)"
    export CUDA_HOME="$root" CUDA_PATH="$root" CUDA_ROOT="$root" NVCC="$root/bin/nvcc" PATH="$root/bin:$PATH"
    export LIBRARY_PATH="$root/lib/stubs:$root/lib:$root/lib64:$root/lib64/stubs${LIBRARY_PATH:+:$LIBRARY_PATH}"
    export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-90}"
fi
cargo build --release --bin vlmerge --example card "${features[@]}"
mkdir -p "$kit"
rm -f "$kit"/*.gz "$kit"/card "$kit"/vlmerge
for program in release/vlmerge release/examples/card; do
    name="$(basename "$program")"
    strip --strip-all -o "$kit/$name" "$build/$program"
    bytes=$(stat -c %s "$kit/$name")
    if [ "$device" = cuda ]; then
        gzip -9 "$kit/$name"
        echo "$name: $bytes bytes, $(stat -c %s "$kit/$name.gz") packed"
    else
        echo "$name: $bytes bytes"
    fi
done
git rev-parse HEAD >"$kit/commit"
du -sh "$kit"
