"""Test (and evaluate) a detector.

    python tools/test.py CONFIG CHECKPOINT [--report DIR] [--show-dir DIR] [--out FILE.pkl] ...
    mim test deim_mmdet CONFIG --checkpoint CHECKPOINT [...]

CONFIG is a path; through mim it may be the name of one of the package's configs, from anywhere.
"""

import argparse
import copy
import os
from pathlib import Path

from deim_mmdet.data_checks.config import check_data
from deim_mmdet.engine.config import check_no_conflict, load_config
from deim_mmdet.engine.faults import EXPLAINED, MISTAKES, check_writable, without_traceback
from deim_mmdet.reports import ReportHook, check_argument
from deim_mmdet.utils.components import dataset_configs, is_component

from mmcv.transforms import Resize
from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmdet.registry import TRANSFORMS
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import RUNNERS


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Test (and evaluate) a detector')
    parser.add_argument('config', help='path of the config')
    parser.add_argument(
        'checkpoint',
        help='checkpoint of this package, of the reference or of transformers: a path or an '
        'https:// address',
    )
    parser.add_argument('--work-dir', help='folder for logs; default work_dirs/<config name>')
    parser.add_argument('--out', help='write predictions to this .pkl file')
    parser.add_argument(
        '--report', help='new folder for a report: an HTML page, its pictures, and JSON'
    )
    parser.add_argument('--show', action='store_true', help='show pictures with detections')
    parser.add_argument(
        '--show-dir', help='save pictures with detections: work_dir/timestamp/<this>'
    )
    parser.add_argument('--wait-time', type=float, default=2, help='seconds a picture is shown')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings in place of those of the config, as key=value: data_root=/data/mine, '
        'image_size=320. Lists: key="[a,b]" or key=a,b',
    )
    parser.add_argument(
        '--no-check-data',
        action='store_true',
        help='do not look for faults in the annotations first, see tools/check_dataset.py',
    )
    parser.add_argument(
        '--amp', action='store_true', help='half precision: float16 on a GPU, bfloat16 on the CPU'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument(
        '--tta', action='store_true', help='merge detections of the image and its mirror image'
    )
    parser.add_argument(
        '--fused',
        action='store_true',
        help='test a fused copy of the model; on a GPU in half precision and by CUDA graphs',
    )
    # torch.distributed.launch passes --local-rank or, in older versions, --local_rank.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args()
    if args.out is not None and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out {args.out}: predictions are written as .pkl or .pickle')
    if args.fused and args.tta:
        parser.error('--fused: a model with --tta is not fused; leave one of them out')
    if not Path(args.checkpoint).exists() and '://' not in args.checkpoint:
        parser.error(f'there is no checkpoint {args.checkpoint}')
    check_argument(parser, args.report)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def add_test_time_augmentation(cfg: Config) -> None:
    """Test on each image and its mirror image; NMS merges their detections.

    The image is mirrored before it is resized. So its padding stays where the model expects it, and
    boxes are mirrored within the image's width.

    Args:
        cfg: A whole config, changed in place.
    """
    meta_keys = (
        *('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
        *('flip', 'flip_direction'),
    )
    flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
    pack = dict(type='PackDetInputs', meta_keys=meta_keys)
    for dataset in dataset_configs(cfg.test_dataloader.dataset):
        *steps, _ = copy.deepcopy(dataset.pipeline)
        resizes = [i for i, step in enumerate(steps) if is_component(TRANSFORMS, step, Resize)]
        first = resizes[0] if resizes else len(steps)
        transforms = [flips, *([step] for step in steps[first:]), [pack]]
        pipeline = [*steps[:first], dict(type='TestTimeAug', transforms=transforms)]
        dataset.pipeline = cfg.get('tta_pipeline', pipeline)
    tta_model = cfg.get(
        'tta_model',
        dict(
            type='DetTTAModel',
            tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.7), max_per_img=100),
        ),
    )
    cfg.model = ConfigDict(**tta_model, module=cfg.model)


def prepare(args: argparse.Namespace) -> Config:
    """The config with the command line's settings in it."""
    check_no_conflict(
        args.cfg_options,
        {
            'launcher': ('--launcher', args.launcher),
            'work_dir': ('--work-dir', args.work_dir),
            'load_from': ('the checkpoint', args.checkpoint),
            'test_cfg.fp16': ('--amp', args.amp or None),
        },
    )
    cfg = load_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    cfg.load_from = args.checkpoint
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    if args.amp:
        # mmengine's loop takes bfloat16 on a CPU.
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir:
        cfg = trigger_visualization_hook(cfg, args)
    if args.tta:
        add_test_time_augmentation(cfg)
    if args.fused:
        cfg.custom_hooks = [*cfg.get('custom_hooks', ()), dict(type='FusedTestHook')]
    return cfg


@without_traceback(*EXPLAINED)
def main() -> None:
    args = parse_args()
    setup_cache_size_limit_of_dynamo()
    with without_traceback(*MISTAKES):
        if args.out is not None:
            check_writable(Path(args.out).parent, 'the folder', '--out')
        cfg = prepare(args)
        if not args.no_check_data:
            check_data(cfg, ('test',))
    runner = RUNNERS.build(cfg)
    if args.out is not None:
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    if args.report is not None:
        # Not in the config, which is kept in the work directory: other runs may read it.
        runner.register_hook(ReportHook(args.report))
    runner.test()


if __name__ == '__main__':
    main()
