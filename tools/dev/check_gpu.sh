#!/usr/bin/env bash
# Check a machine with a GPU, in at most 7 minutes on an H100: operators, mixed precision, step times,
# training, inference. Writes OUT/results.json and OUT/table.md, and prints the table.
#
#     PYTHON=.venv/bin/python tools/dev/check_gpu.sh [PART ...] [--device cuda|cpu] [--out OUT]
#                                                    [--minutes 7] [--wheels FOLDER]
#
# It needs torch, and a C++ compiler and nvcc for the operators. What else is missing is taken from
# FOLDER, without network. Where torch, numpy, scipy, OpenCV, matplotlib, scikit-learn and pytest are
# there, these wheels do: mmengine==0.10.7 mmcv-lite==2.1.0 mmdet==3.3.0 addict yapf platformdirs
# terminaltables termcolor pycocotools shapely, and pydfine and transformers to compare with. `pip
# download --no-deps` gets them; mmcv-lite is built by `pip wheel --no-deps`.
# --device cpu tries all parts with smaller sizes. --help names the parts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
exec "${PYTHON:-python}" tools/dev/check_gpu.py "$@"
