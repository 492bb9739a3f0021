#!/usr/bin/env bash
# Set up .venv with pinned versions, mmcv's compiled operators included.
#
# mmcv is not on PyPI as a wheel, so its operators are compiled once for each pair of Python and
# torch and the wheel is kept in $DEIM_MMDET_CACHE (default: ~/.cache/deim_mmdet), outside the clone.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=$root/.venv
cache=${DEIM_MMDET_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/deim_mmdet}
mmcv_version=2.1.0
openmim_version=0.3.9

scratch=$(mktemp -d)
step='starting'
finish() {
    status=$?
    [ -z "${ticker:-}" ] || kill "$ticker" 2>/dev/null || true
    rm -rf "$scratch"
    [ "$status" -eq 0 ] || printf '\n[setup] FAILED while %s\n' "$step" >&2
}
trap finish EXIT
begin() { step=$1; printf '[setup] %s%s\n' "$1" "${2:+ ($2)}"; }

base_python=${PYTHON:-python3}
begin "looking at $base_python"
"$base_python" - <<'PY'
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 12):
    sys.exit(f'The pinned versions are for Python 3.11 and 3.12, this is {sys.version.split()[0]}: '
             'run `make PYTHON=/path/to/python3.11 ...`')
PY

begin "creating the virtual environment $venv"
python=$venv/bin/python
# Also repairs one whose creation was interrupted.
"$python" -m pip --version >/dev/null 2>&1 || "$base_python" -m venv --clear "$venv"
# Twice quiet: errors only. Byte code is compiled when a module is first imported.
pip() { "$python" -m pip --disable-pip-version-check --no-input -q -q "$@"; }

begin 'installing torch, mmdet and the tools with pinned versions' '1 to 3 minutes'
pip install --no-compile -r "$root/requirements/build.txt" -r "$root/requirements/pins.txt" \
    -r "$root/requirements/mim.txt" -r "$root/requirements/dev.txt"

cuda=$("$python" -c 'import torch; print(int(torch.cuda.is_available()))')
key=$("$python" -c "
import sys, torch
version = torch.__version__
if torch.version.cuda and '+' not in version:
    version += f'+cu{torch.version.cuda}'
print(f'py{sys.version_info[0]}{sys.version_info[1]}-torch{version}')")
[ "$cuda" = 0 ] || key=$key-gpu
wheels=$cache/wheels/$key
if ! ls "$wheels/mmcv-$mmcv_version"-*.whl >/dev/null 2>&1; then
    begin "compiling the operators of mmcv $mmcv_version for $key" \
        "about 16 minutes on two cores, once for this machine; kept in $wheels"
    command -v g++ >/dev/null ||
        { echo 'A C++ compiler is needed: install g++ (Debian, Ubuntu: apt-get install g++).' >&2; exit 1; }
    started=$SECONDS
    ( while sleep 60; do printf '[setup] still compiling, %d min\n' $(( (SECONDS - started) / 60 )); done ) &
    ticker=$!
    if ! MMCV_WITH_OPS=1 FORCE_CUDA=$cuda "$python" -m pip --no-input wheel --no-build-isolation \
            --no-deps --no-cache-dir "mmcv==$mmcv_version" -w "$scratch" >"$scratch/log" 2>&1; then
        tail -n 40 "$scratch/log" >&2
        exit 1
    fi
    kill "$ticker"; ticker=
    mkdir -p "$wheels"
    # Moved in one step within one file system: an interrupted run leaves no half-written wheel.
    built=$(basename "$scratch"/mmcv-*.whl)
    cp "$scratch/$built" "$wheels/.$$.part"
    mv "$wheels/.$$.part" "$wheels/$built"
fi

begin "installing mmcv $mmcv_version from $wheels, openmim and deim_mmdet (editable)" \
    'half a minute on two cores: its own operators are compiled'
pip install --no-compile --no-deps --no-build-isolation \
    "$wheels/mmcv-$mmcv_version"-*.whl "openmim==$openmim_version" -e "$root"

begin 'checking the environment'
"$python" -c '
import deim_mmdet, mmcv.ops, mmdet
from deim_mmdet.ops import compiled
print("[setup] operators of deim_mmdet:", ", ".join(compiled.DEVICES) or compiled.MISSING)'
"$venv/bin/mim" search deim_mmdet --to-dict >/dev/null
touch "$venv/.ready"
printf '[setup] environment ready\n'
