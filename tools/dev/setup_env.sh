#!/usr/bin/env bash
# Set up .venv with pinned versions, mmcv's compiled operators included.
#
# mmcv is not on PyPI as a wheel, so its operators are compiled once for each pair of Python and
# torch and the wheel is kept in $DEIM_MMDET_CACHE (default: ~/.cache/deim_mmdet), outside the clone.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=$root/.venv
cache=${DEIM_MMDET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/deim_mmdet}
mmcv_version=2.1.0
say() { printf '\n[setup] %s\n' "$*"; }

base_python=${PYTHON:-python3}
"$base_python" - <<'PY'
import sys
if not (3, 10) <= sys.version_info[:2] <= (3, 12):
    sys.exit(f'Python 3.10 to 3.12 is needed, this is {sys.version.split()[0]}: '
             'run `make PYTHON=/path/to/python3.11 ...`')
PY

say "virtual environment in $venv (about 2 minutes, most of it torch)"
[ -x "$venv/bin/python" ] || "$base_python" -m venv "$venv"
python=$venv/bin/python
pip() { "$python" -m pip --disable-pip-version-check "$@"; }

# mmcv and openmim still use pkg_resources, which setuptools 81 dropped.
pip install -q 'setuptools==79.0.1' 'wheel<0.46' ninja
pip install -q -r "$root/requirements/pins.txt" -r "$root/requirements/dev.txt"

key=$("$python" -c "
import sys, torch
version = torch.__version__ + ('' if torch.version.cuda is None or '+' in torch.__version__ else '+cu' + torch.version.cuda)
print(f'py{sys.version_info[0]}{sys.version_info[1]}-torch{version}')")
wheels=$cache/wheels/$key
if ! ls "$wheels"/mmcv-"$mmcv_version"-*.whl >/dev/null 2>&1; then
    say "compiling the operators of mmcv $mmcv_version for $key: about 16 minutes on two cores, once; kept in $wheels"
    command -v g++ >/dev/null || { echo 'A C++ compiler is needed: install g++ (Debian: apt-get install g++).'; exit 1; }
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"; [ -z "${ticker:-}" ] || kill "$ticker" 2>/dev/null || true' EXIT
    started=$SECONDS
    ( while sleep 60; do printf '[setup] still compiling, %d min\n' $(( (SECONDS - started) / 60 )); done ) &
    ticker=$!
    cuda=$("$python" -c 'import torch; print(int(torch.cuda.is_available()))')
    if ! MMCV_WITH_OPS=1 FORCE_CUDA=$cuda pip wheel -q --no-build-isolation --no-deps --no-cache-dir \
            "mmcv==$mmcv_version" -w "$scratch" >"$scratch/log" 2>&1; then
        tail -n 40 "$scratch/log"
        echo "mmcv did not compile; the end of its log stands above."
        exit 1
    fi
    kill "$ticker"; unset ticker
    mkdir -p "$wheels"
    # Moved in one step, so that an interrupted run leaves no half-written wheel behind.
    cp "$scratch"/mmcv-*.whl "$wheels/.part" && mv "$wheels/.part" "$wheels/$(basename "$scratch"/mmcv-*.whl)"
fi
say "installing mmcv $mmcv_version from $wheels"
pip install -q "$wheels"/mmcv-"$mmcv_version"-*.whl

# openmim's dependency openxlab pins setuptools 60: let it, then raise setuptools again.
pip install -q openmim==0.3.9
pip install -q 'setuptools==79.0.1'
say 'installing deim_mmdet (editable)'
pip install -q --no-build-isolation --no-deps -e "$root"
touch "$venv/.ready"
say 'environment ready'
