"""Look for faults in the data sets that a config trains, validates and tests with.

    python tools/check_dataset.py CONFIG [--images] [--out DIR]

Writes report.json and, with example images, report.png. Exits with 1 where something would break
training, and with 0 otherwise, whatever else was found.
"""

import argparse
import json
import os
from pathlib import Path

from deim_mmdet.data_checks.config import check_datasets
from deim_mmdet.data_checks.sheet import draw_report
from deim_mmdet.engine.config import load_config
from deim_mmdet.engine.faults import EXPLAINED, MISTAKES, check_writable, without_traceback
from deim_mmdet.utils.files import replaced_when_complete

import cv2
from mmengine.config import DictAction


@without_traceback(*EXPLAINED)
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', help='path of the config')
    parser.add_argument(
        '--images', action='store_true', help='read every image too; without, annotations alone'
    )
    parser.add_argument(
        '--workers',
        type=int,
        default=os.cpu_count() or 1,
        help='processes that read images; 0: none beside this one. Default: one a core',
    )
    parser.add_argument(
        '--out', type=Path, help='folder to write to; default work_dirs/<config name>/data'
    )
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='key=value pairs')
    args = parser.parse_args()
    if args.workers < 0:
        parser.error(f'--workers must be 0 or more, got {args.workers}')
    out = args.out or Path('work_dirs') / Path(args.config).stem / 'data'

    with without_traceback(*MISTAKES):
        config = load_config(args.config, args.cfg_options)
        check_writable(out, 'the folder', '--out')
    reports = check_datasets(config, args.images, args.workers, use_cache=False)
    for report in reports:
        print(report.text())
    with replaced_when_complete(out / 'report.json') as path:
        path.write_text(json.dumps([report.to_dict() for report in reports], indent=1))
    print(out / 'report.json')
    sheet = draw_report(reports)
    if sheet is not None:
        with replaced_when_complete(out / 'report.png') as path:
            if not cv2.imwrite(str(path), sheet):
                raise SystemExit(f'could not write {out / "report.png"}')
        print(out / 'report.png')
    # The test set takes no part in training.
    if any(report.breaks and report.splits != ['test'] for report in reports):
        raise SystemExit(1)


if __name__ == '__main__':
    main()
