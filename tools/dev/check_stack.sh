#!/usr/bin/env bash
# Try the package on another version of torch or on the other stack, in an environment of its own.
#
#     tools/dev/check_stack.sh [--torch 2.8.0] [--stack openmmlab|onedl] [--python python3.12]
#                              [--dir DIR] [TEST ...]
#
# Copies the checkout to DIR (default: work_dirs/stacks/STACK-torchVERSION), sets up an environment
# there and runs the tests that matter on every stack (tests/on_every_stack.txt) and those of the
# operators, or those given.
# The last line is a row of the table in docs/compatibility.md. Exits with pytest's status.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
torch=$(sed -n 's/^torch==//p' "$root/requirements/pins.txt")
stack=openmmlab
python=${PYTHON:-python3}
dir=
tests=()
while [ $# -gt 0 ]; do
    case $1 in
        --torch) torch=$2; shift 2 ;;
        --stack) stack=$2; shift 2 ;;
        --python) python=$2; shift 2 ;;
        --dir) dir=$2; shift 2 ;;
        -h | --help) sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
        -*) echo "$1: unknown option; --help tells which there are" >&2; exit 2 ;;
        *) tests+=("$1"); shift ;;
    esac
done
[ ${#tests[@]} -gt 0 ] || tests=(tests/ops @tests/on_every_stack.txt)
dir=${dir:-$root/work_dirs/stacks/$stack-torch$torch}

# A copy: operators compiled for one torch must not replace those of the checkout.
mkdir -p "$dir"
git -C "$root" ls-files -z --cached --others --exclude-standard |
    (cd "$root" && xargs -0 ls -d 2>/dev/null) | tar -C "$root" -cf - -T - | tar -C "$dir" -xf -
cd "$dir"
STACK=$stack TORCH=$torch PYTHON=$python bash tools/dev/setup_env.sh "$dir/.venv" --dev

status=0
report=$dir/report.xml
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n "${JOBS:-2}" --dist loadfile \
    --junit-xml "$report" "${tests[@]}" || status=$?
.venv/bin/python - "$report" "$stack" "${tests[*]}" <<'PY'
import datetime, platform, sys
from xml.etree import ElementTree
import mmcv, mmdet, mmengine, numpy, torch
report, stack, tests = sys.argv[1:]
count = ElementTree.parse(report).getroot().find('testsuite').attrib
failed = int(count['failures']) + int(count['errors'])
passed = int(count['tests']) - failed - int(count['skipped'])
libraries = (torch, mmengine, mmdet, mmcv, numpy)
print('|', ' | '.join([
    stack, platform.python_version(), *(library.__version__ for library in libraries),
    tests, f'{passed} passed, {count["skipped"]} skipped, {failed} failed',
    str(datetime.date.today()),
]), '|')
PY
exit "$status"
