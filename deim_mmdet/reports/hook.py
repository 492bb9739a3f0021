"""Writes a report after an evaluation."""

import os.path as osp
from pathlib import Path

from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop

from .. import compat
from ..utils.errors import UserError
from .collector import DetectionCollector, annotations_of, find_metric
from .content import Evaluated
from .counts import count_training
from .report import check_folder, write_report


@HOOKS.register_module()
class ReportHook(Hook):
    """Writes a report on a test, or on the last evaluation of a training.

    It needs no component of this package beside it: any detector of mmdet with a ``CocoMetric`` or
    :class:`~deim_mmdet.evaluation.CheckedCocoMetric` on boxes will do. Figures of the evaluation
    stay as they are. See docs/report.md.

    Args:
        folder: A new or empty folder.

    Raises:
        ValueError: Before the first image, where no report can be made of the evaluation or
            written to the folder; the message says why.
    """

    priority = 'LOWEST'

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._collector: DetectionCollector | None = None
        self._split = ''

    def before_run(self, runner) -> None:
        """Check that a report can be made, and take in the detections of the evaluation."""
        if self._collector is not None:
            return
        loops = compat.built_loops(runner)
        self._split = 'test' if 'training' not in loops and 'test' in loops else 'validation'
        loop: BaseLoop | None = loops.get(self._split)
        if loop is None:
            raise UserError(
                'a report needs an evaluation, and the config has no val_dataloader: add one with '
                'its val_evaluator, or leave the report out'
            )
        find_metric(loop.evaluator)
        check_folder(self.folder)
        self._collector = DetectionCollector(loop.evaluator)
        loop.evaluator.metrics.append(self._collector)

    def after_run(self, runner) -> None:
        """Write the report of the last evaluation."""
        collector = self._collector
        if not is_main_process():
            return
        if collector.collected is None:
            runner.logger.warning(f'No report in {self.folder}: nothing was evaluated')
            return
        metric = collector.metric
        evaluated = Evaluated(
            annotations=annotations_of(metric),
            category_ids=list(metric.cat_ids),
            image_ids=list(metric.img_ids),
            collected=collector.collected,
            about=self._about(runner),
        )
        write_report(evaluated, count_training(runner.cfg), self.folder)
        collector.collected = None
        runner.logger.info(f'Report: {self.folder / "report.html"}')

    def _about(self, runner) -> dict[str, str]:
        about = dict(config=osp.basename(runner.cfg.filename or 'a config'))
        if 'training' in compat.built_loops(runner):
            about['weights'] = f'after epoch {runner.epoch} (iteration {runner.iter})'
        else:
            about['weights'] = str(runner.cfg.get('load_from'))
        option = dict(test='test', validation='val')[self._split]
        dataset = runner.cfg.get(f'{option}_dataloader', {}).get('dataset') or {}
        about[f'{self._split} data'] = str(dataset.get('ann_file', 'see the config'))
        return about
