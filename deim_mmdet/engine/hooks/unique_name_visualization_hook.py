"""Writes pictures of detections that do not overwrite each other."""

import logging
import os.path as osp
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import cv2
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.registry import HOOKS
from mmdet.structures import DetDataSample
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from ...datasets.pictures import read_picture
from ...datasets.transforms.loading import UnreadableImageError
from ..checks import base_datasets


@HOOKS.register_module()
class UniqueNameVisualizationHook(DetVisualizationHook):
    """mmdet's hook, with a picture in ``test_out_dir`` for each image of the test set.

    mmdet 3.3.0 overwrites pictures of images with the same name, as in folders of several cameras.
    Here ``test_out_dir`` has the same subfolders as the folder that all images lie in. A file whose
    name has no suffix of a picture gets ``.png`` behind it. For data sets that aren't mmengine's
    the images are unknown; mmdet's names stay. Arrays and pictures of 16 bits, which mmdet can't
    show, are drawn too.

    Args: those of :class:`mmdet.engine.hooks.DetVisualizationHook`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.visualizer = Visualizer.get_current_instance()
        self.folder: str | None = None
        self.tested = 0

    def before_test(self, runner: Runner) -> None:
        """Find the folder that all images lie in; see :class:`mmengine.hooks.Hook`."""
        self.folder = None
        if self.draw and self.test_out_dir is not None:
            paths = (
                base.get_data_info(index).get('img_path')
                for base in base_datasets(runner.test_dataloader.dataset)
                for index in range(len(base))
            )
            folders = {osp.dirname(osp.abspath(path)) for path in paths if path}
            # There is none without a file, or where they lie on several drives of Windows.
            with suppress(ValueError):
                self.folder = osp.commonpath(folders)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[DetDataSample]
    ) -> None:
        """Draw the first image of a batch; see :class:`mmengine.hooks.Hook`."""
        if not self.draw:
            return
        # Asked for only here: without a training, mmengine builds its loop to know the iteration.
        step = runner.iter + batch_idx
        if step % self.interval == 0:
            self._draw(outputs[0], 'val_img', step)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[DetDataSample]
    ) -> None:
        """Draw all images of a batch; see :class:`mmengine.hooks.Hook`."""
        if not self.draw:
            return
        for sample in outputs:
            self.tested += 1
            out_file = None
            if self.test_out_dir is not None:
                name = self._picture_name(sample.img_path)
                out_file = osp.join(runner.work_dir, runner.timestamp, self.test_out_dir, name)
            self._draw(sample, 'test_img', self.tested, out_file)

    def _picture_name(self, image: str) -> str:
        """The picture's path below ``test_out_dir``."""
        path = Path(osp.abspath(image))
        inside = self.folder is not None and path.is_relative_to(self.folder)
        name = str(path.relative_to(self.folder) if inside else path.name)
        # Arrays have a suffix that is none of a picture, and some pictures have none.
        return name if cv2.haveImageWriter(path.name) else f'{name}.png'

    def _draw(
        self, sample: DetDataSample, name: str, step: int, out_file: str | None = None
    ) -> None:
        try:
            picture = read_picture(sample.img_path, self.backend_args)
        except UnreadableImageError as error:
            # Older versions of OpenCV evaluate a truncated image: the run goes on.
            print_log(f'Not drawn: {error}', logger='current', level=logging.WARNING)
            return
        self.visualizer.add_datasample(
            osp.basename(sample.img_path) if self.show else name,
            cv2.cvtColor(picture, cv2.COLOR_BGR2RGB),
            data_sample=sample,
            show=self.show,
            wait_time=self.wait_time,
            pred_score_thr=self.score_thr,
            out_file=out_file,
            step=step,
        )
