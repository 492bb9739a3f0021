#!/usr/bin/env bash
# On a machine with a GPU: compile the operators, run the tests of the CPU there, and time them.
#
#     PYTHON=.venv/bin/python tools/dev/check_gpu.sh [options of benchmarks/operators.py]
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python}

"$python" - <<'PY'
import sys, torch
if not (torch.version.cuda and torch.cuda.is_available()):
    sys.exit(f'torch {torch.__version__} sees no GPU')
print(f'{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}')
PY
"$python" setup.py --quiet build_ext --inplace
"$python" - <<'PY'
import sys
from deim_mmdet.ops import compiled
if 'cuda' not in compiled.DEVICES:
    sys.exit(f'The operators were compiled for {compiled.DEVICES} only: is nvcc in PATH, and of the '
             f'CUDA of this torch? {compiled.MISSING}')
PY
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$python" -m pytest tests/ops --ignore tests/ops/test_build.py -rs | tee "$log"
if grep -qE 'operators for cuda|there is no GPU' "$log"; then
    echo 'Tests of the GPU were skipped.' >&2
    exit 1
fi
"$python" benchmarks/operators.py --device cuda "$@"
