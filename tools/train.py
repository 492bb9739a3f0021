"""Train a detector.

    python tools/train.py CONFIG [--work-dir DIR] [--epochs N] [--resume [CHECKPOINT]] ...
    mim train deim_mmdet CONFIG [...]

CONFIG is a path; through mim it may be the name of one of the package's configs, from anywhere.
"""

import argparse
import os
import sys
from pathlib import Path

from deim_mmdet.checkpoints.loading import check_found
from deim_mmdet.data_checks.config import check_data
from deim_mmdet.engine.config import (
    NO_SCALE,
    PRECISIONS,
    check_no_conflict,
    load_config,
    override_length,
    set_mixed_precision,
)
from deim_mmdet.engine.devices import check_gpu_found
from deim_mmdet.engine.faults import EXPLAINED, MISTAKES, find_resumable, without_traceback
from deim_mmdet.engine.fitting_batch_size import fitting_batch_size
from deim_mmdet.reports import ReportHook, check_argument

from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS


def positive(text: str) -> int:
    """Type of an argument that is a positive number."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, got {number}')
    return number


def batch_size(text: str) -> int | str:
    """Type of an argument that is a positive number, or the word ``auto``."""
    return text if text == AUTO else positive(text)


AUTO = 'auto'
#: What ``--amp`` alone stands for: the published models were trained so.
PUBLISHED = 'fp16'


def with_value_of_amp(arguments: list[str]) -> list[str]:
    """Give ``--amp`` its value where it has none; argparse would take a config after it for one."""
    following = [*arguments[1:], '']
    return [
        f'--amp={PUBLISHED}' if each == '--amp' and after not in PRECISIONS else each
        for each, after in zip(arguments, following, strict=False)
    ]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Train a detector')
    parser.add_argument('config', help='path of the config')
    parser.add_argument(
        '--work-dir', help='folder for logs and checkpoints; default work_dirs/<config name>'
    )
    parser.add_argument(
        '--amp',
        nargs='?',
        const=PUBLISHED,
        choices=PRECISIONS,
        help='mixed precision: fp16 with a dynamic loss scale, as the published models were '
        'trained, or --amp bf16; on the CPU always bf16',
    )
    parser.add_argument(
        '--compile',
        action='store_true',
        help='compile backbone, neck and decoder for each size of the images, which takes minutes '
        'in the first epoch',
    )
    parser.add_argument(
        '--cuda-graph',
        action='store_true',
        help='launch the work from images to predictions as one; needs a GPU with CUDA',
    )
    parser.add_argument(
        '--epochs',
        type=positive,
        help='epochs of training; stages, warm-ups and EMA of a config with a recipe follow',
    )
    parser.add_argument(
        '--batch-size',
        type=batch_size,
        help='images of each process in an iteration, or auto: as many as fit into the memory of '
        'the GPU; learning rates and durations follow where auto_scale_lr is on',
    )
    parser.add_argument(
        '--val-interval', type=positive, help='evaluate after every so many epochs, and the last'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale learning rates and durations by batch size; on by default in our configs '
        '(off: --cfg-options auto_scale_lr.enable=False)',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from this checkpoint; without one, from the latest of the work directory',
    )
    parser.add_argument(
        '--report',
        help='new folder for a report on the last evaluation: an HTML page, its pictures, and JSON',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings in place of those of the config, as key=value: train_cfg.max_epochs=12, '
        'data_root=/data/mine, image_size=320. Lists: key="[a,b]" or key=a,b',
    )
    parser.add_argument(
        '--no-check-data',
        action='store_true',
        help='do not look for faults in the annotations first, see tools/check_dataset.py',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    # torch.distributed.launch passes --local-rank or, in older versions, --local_rank.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
    args = parser.parse_args(with_value_of_amp(sys.argv[1:]))
    if args.batch_size == AUTO and args.launcher != 'none':
        parser.error('--batch-size auto: find the number in one process, then give it to all')
    if args.cuda_graph:
        check_gpu_found(parser, '--cuda-graph')
    check_argument(parser, args.report)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def prepare(args: argparse.Namespace) -> Config:
    """The config with the command line's settings in it, but for ``--batch-size auto``."""
    check_no_conflict(
        args.cfg_options,
        {
            'launcher': ('--launcher', args.launcher),
            'work_dir': ('--work-dir', args.work_dir),
            'train_cfg.max_epochs': ('--epochs', args.epochs),
            'max_epochs': ('--epochs', args.epochs),
            'train_dataloader.batch_size': ('--batch-size', args.batch_size),
            'batch_size': ('--batch-size', args.batch_size),
            'train_cfg.val_interval': ('--val-interval', args.val_interval),
            'optim_wrapper.type': ('--amp', 'AmpOptimWrapper' if args.amp else None),
            'optim_wrapper.dtype': (f'--amp {args.amp}, that is,', PRECISIONS.get(args.amp)),
            'optim_wrapper.loss_scale': (
                '--amp bf16, which has a loss_scale of',
                NO_SCALE if args.amp == 'bf16' else None,
            ),
            'auto_scale_lr.enable': ('--auto-scale-lr', args.auto_scale_lr or None),
            'load_from': ('--resume', None if args.resume == 'auto' else args.resume),
        },
    )
    cfg = load_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    if args.amp:
        set_mixed_precision(cfg, args.amp)
    size = None if args.batch_size == AUTO else args.batch_size
    override_length(cfg, args.epochs, size, args.val_interval)
    hooks = {'CompileHook': args.compile, 'CUDAGraphHook': args.cuda_graph}
    if added := [dict(type=name) for name, wanted in hooks.items() if wanted]:
        cfg.custom_hooks = [*cfg.get('custom_hooks', []), *added]
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError(
                '--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config: the '
                'batch size that its learning rate belongs to'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume == 'auto' and find_resumable(cfg.work_dir)[0] is None:
        # A first start; it may start from weights.
        print(f'--resume: there is no checkpoint in {cfg.work_dir} yet, training starts anew')
    elif args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if cfg.get('load_from'):
        check_found(cfg.load_from)
    return cfg


@without_traceback(*EXPLAINED)
def main() -> None:
    args = parse_args()
    setup_cache_size_limit_of_dynamo()
    with without_traceback(*MISTAKES):
        cfg = prepare(args)
        if not args.no_check_data:
            check_data(cfg)
    if args.batch_size == AUTO:
        # Its trials are trainings, whose errors keep their tracebacks.
        override_length(cfg, batch_size=fitting_batch_size(cfg))
    runner = RUNNERS.build(cfg)
    if args.report is not None:
        # Not in the config, which is kept in the work directory: other runs may read it.
        runner.register_hook(ReportHook(args.report))
    runner.train()


if __name__ == '__main__':
    main()
