#!/usr/bin/env bash
# Compile MMCV with its operators and install it into an environment in place of one without.
#
#     tools/dev/build_mmcv.sh VENV
#
# No wheel of MMCV 2.1 with operators exists for today's torch. MMCV is compiled once for each pair
# of Python and torch, and kept in $DEIM_MMDET_CACHE (default: ~/.cache/deim_mmdet), outside the clone.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=$1/bin/python
cache=${DEIM_MMDET_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/deim_mmdet}
if [ "${STACK:-openmmlab}" != openmmlab ]; then
    echo "make ops compiles OpenMMLab's MMCV: it is not tried with STACK=$STACK" >&2
    exit 2
fi
version=$(sed -n 's/^mmcv-lite==//p' "$root/requirements/openmmlab.txt")
file=mmcv-$version

scratch=$(mktemp -d)
ticker=
finish() {
    status=$?
    [ -z "$ticker" ] || kill "$ticker" 2>/dev/null || true
    rm -rf "$scratch"
    [ "$status" -eq 0 ] || printf '\n[ops] FAILED\n' >&2
}
trap finish EXIT
say() { printf '[ops] %s\n' "$*"; }

cuda=$("$python" -c 'import torch; print(int(torch.cuda.is_available()))')
key=$("$python" -c "
import sys, torch
version = torch.__version__
if torch.version.cuda and '+' not in version:
    version += f'+cu{torch.version.cuda}'
print(f'py{sys.version_info[0]}{sys.version_info[1]}-torch{version}')")
[ "$cuda" = 0 ] || key=$key-gpu
wheels=$cache/wheels/$key
if ! ls "$wheels/$file"-*.whl >/dev/null 2>&1; then
    command -v g++ >/dev/null ||
        { echo 'A C++ compiler is needed: install g++ (Debian, Ubuntu: apt-get install g++).' >&2; exit 1; }
    expected='11 to 16 minutes on two cores'
    [ "$cuda" = 0 ] || expected='an hour on two cores'
    say "compiling the operators of mmcv $version for $key: $expected, once; kept in $wheels"
    ( while sleep 60; do say "still compiling, $((SECONDS / 60)) min"; done ) &
    ticker=$!
    if ! MMCV_WITH_OPS=1 FORCE_CUDA=$cuda "$python" -m pip --no-input wheel --no-build-isolation \
            --no-deps --no-cache-dir "mmcv==$version" -w "$scratch" >"$scratch/log" 2>&1; then
        tail -n 40 "$scratch/log" >&2
        exit 1
    fi
    kill "$ticker"; ticker=
    mkdir -p "$wheels"
    # Moved in one step within one file system: an interrupted run leaves no half-written wheel.
    built=$(basename "$scratch/$file"-*.whl)
    cp "$scratch/$built" "$wheels/.$$.part"
    mv "$wheels/.$$.part" "$wheels/$built"
fi
"$python" -m pip --disable-pip-version-check -q uninstall -y mmcv-lite
"$python" -m pip --disable-pip-version-check -q install --no-deps --no-compile "$wheels/$file"-*.whl
"$python" -c 'import mmcv, mmcv._ext, mmcv.ops; print(f"[ops] mmcv {mmcv.__version__} with its operators")'
