#!/usr/bin/env bash
# Set up a virtual environment with pinned versions, without compiling MMCV.
#
#     STACK=openmmlab|onedl PYTHON=python3 tools/dev/setup_env.sh [VENV] [--dev]
#
# --dev adds what tests and linter need; TORCH=2.8.0 takes another torch than the pinned one. The
# package's own operators are compiled once for each torch and kept in $DEIM_MMDET_CACHE (default:
# ~/.cache/deim_mmdet), outside the clone.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
stack=${STACK:-openmmlab}
# Without byte code every start of Python takes twice as long.
unset PYTHONDONTWRITEBYTECODE
venv=$root/.venv
dev=
for argument in "$@"; do
    case $argument in
        --dev) dev=1 ;;
        *) venv=$argument ;;
    esac
done
requirements=$root/requirements
if [ ! -e "$requirements/$stack.txt" ]; then
    echo "STACK=$stack: there are openmmlab and onedl" >&2
    exit 2
fi
cache=${DEIM_MMDET_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/deim_mmdet}
openmim_version=0.3.9
albumentations_version=2.0.8
albucore_version=0.0.24

scratch=$(mktemp -d)
step='starting'
finish() {
    status=$?
    rm -rf "$scratch"
    [ "$status" -eq 0 ] || printf '\n[setup] FAILED while %s\n' "$step" >&2
}
trap finish EXIT
begin() { step=$1; printf '[setup %3d s] %s%s\n' "$SECONDS" "$1" "${2:+ ($2)}"; }

base_python=${PYTHON:-python3}
begin "looking at $base_python"
"$base_python" - <<'PY'
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    sys.exit(f'The pinned versions are for Python 3.11 to 3.13, this is {sys.version.split()[0]}: '
             'run `make PYTHON=/path/to/python3.11 ...`')
PY

python=$venv/bin/python
# Also repairs one whose creation was interrupted.
if ! "$python" -m pip --version >/dev/null 2>&1; then
    begin "creating the virtual environment $venv" '5 seconds'
    "$base_python" -m venv --clear "$venv"
fi
# Errors only. Byte code is compiled when a module is first imported.
install() {
    "$python" -m pip --disable-pip-version-check --no-input -q -q install --no-compile "$@"
}

begin "installing torch and the stack '$stack' with pinned versions" 'half a minute, and the download'
pins=$scratch/pins.txt stack_pins=$scratch/$stack.txt
sed "${TORCH:+s/^torch==.*/torch==$TORCH/}" "$requirements/pins.txt" >"$pins"
cp "$requirements/$stack.txt" "$stack_pins"
# `make ops` has put MMCV with its operators in place of the one without: it stays.
if "$python" -c 'import importlib.metadata as m; m.version("mmcv")' 2>/dev/null; then
    sed -i /mmcv-lite/d "$stack_pins"
fi
# onedl-mmcv comes as source: without its operators, which nothing here needs, it builds in seconds.
MMCV_WITH_OPS=0 install -r "$requirements/build.txt" -r "$requirements/mim.txt" -r "$pins" -r "$stack_pins"
install --no-deps "openmim==$openmim_version"
if [ "$dev" ]; then
    begin 'installing what tests and linter need' 'half a minute, and the download'
    install -r "$requirements/dev.txt"
    install --no-deps "albumentations==$albumentations_version" "albucore==$albucore_version"
fi

# Two stacks may be set up at once; both put the operators into this checkout.
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9 2>/dev/null || true
library=deim_mmdet/ops/_C.so
kept=$cache/operators/$("$python" "$root/tools/dev/operators_key.py")/_C.so
if [ -e "$kept" ]; then
    begin 'installing deim_mmdet (editable), with the operators kept from an earlier set-up'
    cp "$kept" "$scratch/_C.so"
    mv "$scratch/_C.so" "$root/$library"
    DEIM_MMDET_WITH_OPS=0 install --no-deps --no-build-isolation -e "$root"
else
    begin 'compiling the operators of deim_mmdet, installing it (editable)' \
        'about 1 minute on two cores, 2 with CUDA'
    install --no-deps --no-build-isolation -e "$root"
fi

begin 'importing it, which compiles byte code' '10 to 40 seconds'
"$python" - <<'PY'
import deim_mmdet
import mmdet.apis
from deim_mmdet.ops import compiled
print('[setup] operators of deim_mmdet:', ', '.join(compiled.DEVICES) or compiled.MISSING)
PY
if [ ! -e "$kept" ] && [ -e "$root/$library" ]; then
    mkdir -p "${kept%/*}"
    # Moved in one step within one file system: an interrupted run leaves no half-written library.
    cp "$root/$library" "$kept.$$"
    mv "$kept.$$" "$kept"
fi
begin 'environment ready'
