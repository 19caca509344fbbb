#!/usr/bin/env bash
# Checks that every crate of the workspace compiles for other systems. Nothing is linked, and nothing is run.
#   tests/other_systems.sh [TARGET ...]     Windows, macOS and Linux on 64-bit Arm, unless targets are given
# Where the compiler has the standard library of a target (`rustup target add TARGET`), that is taken. Otherwise, with
# RUSTC_BOOTSTRAP=1, it is compiled from its sources (`rustup component add rust-src`). The C code of dependencies is
# compiled by zig: the program that ZIG names, the one on the path, or ziglang of PyPI, which is installed once.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.17.1
targets=("$@")
[ $# -gt 0 ] || targets=(x86_64-pc-windows-gnu aarch64-apple-darwin aarch64-unknown-linux-gnu)

zig="${ZIG:-$(command -v zig || true)}"
if [ -z "$zig" ]; then
    environment="${VLMERGE_ZIG_ENV:-${XDG_CACHE_HOME:-$HOME/.cache}/vlmerge/zig-$version}"
    [ -x "$environment/bin/pip" ] || python3 -m venv "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check "ziglang==$version"
    zig="$("$environment/bin/python" -c 'import os, ziglang; print(os.path.join(os.path.dirname(ziglang.__file__), "zig"))')"
fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
printf '#!/bin/sh\nexec "%s" ar "$@"\n' "$zig" >"$work/ar"
# The standard library of Windows names functions of libraries, for which rustc asks this program for stubs.
printf '#!/bin/sh\nexec "%s" dlltool "$@"\n' "$zig" >"$work/x86_64-w64-mingw32-dlltool"
chmod +x "$work"/*
export PATH="$PATH:$work"

for target in "${targets[@]}"; do
    # zig has names of its own for systems.
    case "$target" in
        *-pc-windows-gnu) name="${target%%-*}-windows-gnu" ;;
        *-apple-darwin) name="${target%%-*}-macos" ;;
        *) name="${target/-unknown/}" ;;
    esac
    cat >"$work/cc-$target" <<END
#!/usr/bin/env bash
words=()
for word; do [[ "\$word" == --target=* ]] || words+=("\$word"); done
exec "$zig" cc -target $name "\${words[@]}"
END
    chmod +x "$work/cc-$target"

    standard=()
    if ! compgen -G "$(rustc --print target-libdir --target "$target")/libstd-*.rlib" >/dev/null; then
        if [ -z "${RUSTC_BOOTSTRAP:-}" ] || ! [ -d "$(rustc --print sysroot)/lib/rustlib/src/rust/library" ]; then
            echo "$target: the compiler has neither its standard library nor, with RUSTC_BOOTSTRAP=1, the sources of it"
            exit 1
        fi
        standard=(-Z build-std)
    fi

    echo "== $target"
    began=$SECONDS
    env "CC_${target//-/_}=$work/cc-$target" "AR_${target//-/_}=$work/ar" PYO3_NO_PYTHON=1 \
        cargo check --workspace --locked --target "$target" ${standard[@]+"${standard[@]}"}
    echo "$target: compiles, $((SECONDS - began)) s"
done
