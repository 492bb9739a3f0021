#!/usr/bin/env bash
# A piece of the convergence study at lengths that a CPU can't reach, on a machine with a GPU: 20,000
# images of each data set, 15,000 and 30,000 iterations, the baseline and DEIM.
#
#     PYTHON=.venv/bin/python tools/dev/gpu_study.sh [--minutes 8] [option of convergence_study.py ...]
#
# After 8 minutes it stops, and the next call goes on: from the last whole epoch of each run, once the
# data are made. Each call writes the records of what there is to ROOT/records, by default
# work_dirs/gpu_study/records. The folder ROOT is all that has to be kept between calls.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

minutes=8
if [ "${1:-}" = --minutes ]; then
    minutes=$2
    shift 2
fi
root=${ROOT:-work_dirs/gpu_study}
python=${PYTHON:-python}
study=("$python" tools/analysis/convergence_study.py --large --root "$root")
status=0
# The signals go to all processes of the study; 137 says that some needed the second one.
timeout --kill-after=20 "${minutes}m" "${study[@]}" --jobs 4 "$@" || status=$?
case $status in 0 | 124 | 137) ;; *) exit "$status" ;; esac
"${study[@]}" "$@" --list --records "$root/records"
