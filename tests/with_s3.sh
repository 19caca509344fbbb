#!/usr/bin/env bash
# Reads checkpoints from an S3 server on this machine: moto from PyPI, which checks nothing but speaks
# the protocol (listings, ranges, ETags) as botocore expects it. Where there is no Python or no way to
# install it, says so and succeeds.
#   tests/with_s3.sh PROGRAM              VLMERGE_S3_ENV=FOLDER keeps the virtual environment there
set -euo pipefail
cd "$(dirname "$0")/.."
program="$(realpath "$1")"
environment="${VLMERGE_S3_ENV:-${XDG_CACHE_HOME:-$HOME/.cache}/vlmerge/s3}"

install() {
    command -v python3 >/dev/null || return 1
    [ -x "$environment/bin/moto_server" ] && return
    python3 -m venv "$environment" &&
        "$environment/bin/python" -m pip install --quiet 'moto[server,s3]==5.2.1'
}
if ! install; then
    echo "SKIPPED: no moto on this machine and no way to install it"
    exit 0
fi
exec "$environment/bin/python" tests/s3_reads.py "$program"
