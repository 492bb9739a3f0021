#!/usr/bin/env bash
# Check a machine with a GPU, in at most 7 minutes on an H100: operators, mixed precision, step times,
# training, inference. Writes OUT/results.json and OUT/table.md, and prints the table.
#
#     PYTHON=.venv/bin/python tools/dev/check_gpu.sh [PART ...] [--device cuda|cpu] [--out OUT]
#                                                    [--minutes 7] [--wheels FOLDER]
#
# It needs torch, and a C++ compiler and nvcc for the operators. What else is missing is taken from
# FOLDER, without network; docs/performance.md lists the wheels. --device cpu tries all parts with
# smaller sizes. --help names the parts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec "${PYTHON:-python}" tools/dev/check_gpu.py "$@"
