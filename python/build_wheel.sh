#!/usr/bin/env bash
# Builds the wheel with module and program, installs it with numpy alone into a fresh environment, and checks it there:
# size, version, types, the examples of README and docs/python.md, all tests, the notebook; tests with torch where the
# comparisons' environment has it.
#   python/build_wheel.sh [FOLDER]              where the wheel goes; target/wheels unless given
#   python/build_wheel.sh FOLDER TARGET         the wheel for another kind of machine, e.g. aarch64-unknown-linux-gnu, linked
#                                               by zig of PyPI for glibc 2.28; nothing of it runs here, so its glibc alone
#                                               is checked. The compiler needs the target's standard library
#                                               (`rustup target add TARGET`)
set -euo pipefail
cd "$(dirname "$0")/.."

wheels="${1:-target/wheels}" target="${2:-}"
walk="$(mktemp -d)"
trap 'rm -rf "$walk"' EXIT
repository="$PWD"

python3 -m venv "$walk/tools"
"$walk/tools/bin/pip" install --quiet --disable-pip-version-check maturin==1.16.0
linked=()
if [ -n "$target" ]; then
    "$walk/tools/bin/pip" install --quiet --disable-pip-version-check cargo-zigbuild==0.24.1 ziglang==0.17.1 auditwheel==6.8.2
    export PATH="$walk/tools/bin:$PATH"
    linked=(--target "$target" --zig)
fi

echo "== build"
glibc="$(python3 python/backend/vlmerge_build.py ${target:+"$target"})"
rm -rf "$walk/wheels"
"$walk/tools/bin/maturin" build --release --locked --strip --compatibility "manylinux_$glibc" \
    --out "$walk/wheels" ${linked[@]+"${linked[@]}"}
mkdir -p "$wheels"
cp "$walk"/wheels/*.whl "$wheels/"
ls -l "$walk"/wheels/*.whl python/vlmerge.data/scripts/vlmerge
if [ -n "$target" ]; then
    "$walk/tools/bin/auditwheel" show "$walk"/wheels/*.whl
    exit
fi

echo "== a fresh environment with numpy alone"
python3 -m venv "$walk/fresh"
"$walk/fresh/bin/pip" install --quiet --disable-pip-version-check "$walk"/wheels/*.whl
"$walk/fresh/bin/pip" list --disable-pip-version-check
"$walk/fresh/bin/vlmerge" --version
"$walk/fresh/bin/python" -c 'import vlmerge; print("module", vlmerge.__version__)'

echo "== types"
"$walk/fresh/bin/pip" install --quiet --disable-pip-version-check mypy==2.4.1
# The package as its users' checkers see it, and by itself.
"$walk/fresh/bin/mypy" --strict python/tests/typed.py
"$walk/fresh/bin/mypy" --strict --config-file pyproject.toml python/vlmerge

echo "== tests"
cd "$walk"
"$walk/fresh/bin/python" -m unittest discover -s "$repository/python/tests" -t "$repository/python/tests"

echo "== the notebook"
"$walk/fresh/bin/pip" install --quiet --no-compile --disable-pip-version-check nbclient==0.10.2 ipykernel==7.1.0 matplotlib==3.10.8
"$walk/fresh/bin/python" "$repository/python/notebook.py"

echo "== tests with torch"
"$walk/fresh/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$walk/beside" "$walk"/wheels/*.whl
PYTHONPATH="$walk/beside:$repository/python/tests" "$repository/tests/with_torch.sh" "$repository/python/tests/test_torch.py"
