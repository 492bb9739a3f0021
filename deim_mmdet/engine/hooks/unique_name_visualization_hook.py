"""Writes pictures of detections that do not overwrite each other."""

import logging
import os.path as osp
from collections import Counter
from collections.abc import Iterable, Sequence

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

# In bytes. File systems allow 255, and a number may be appended.
LONGEST = 200


def picture_names(paths: Iterable[str]) -> dict[str, str]:
    """A file name for each image, by its absolute path; no two images share one.

    It is the image's own name where no other image has it. Otherwise it is made of the path below
    the folder that all images share, such as ``camera1_0001.jpg``. The order of ``paths`` doesn't
    matter.
    """
    paths = sorted({osp.abspath(path) for path in paths})
    counts = Counter(map(osp.basename, paths))
    common = osp.commonpath(map(osp.dirname, paths)) if paths else ''
    names = {path: osp.basename(path) for path in paths if counts[osp.basename(path)] == 1}
    taken = set(names.values())
    for path in paths:
        if path in names:
            continue
        stem, suffix = osp.splitext(osp.relpath(path, common).replace(osp.sep, '_'))
        # The end of a path says more than its beginning.
        stem = stem.encode()[-LONGEST:].decode(errors='ignore')
        name, number = stem + suffix, 1
        while name in taken:
            number += 1
            name = f'{stem}_{number}{suffix}'
        names[path] = name
        taken.add(name)
    return names


@HOOKS.register_module()
class UniqueNameVisualizationHook(DetVisualizationHook):
    """mmdet's hook, with a picture in ``test_out_dir`` for each image of the test set.

    mmdet 3.3.0 overwrites pictures of images with the same name, as in folders of several cameras.
    Here names follow from the test set alone, so that all processes give the same ones. For data
    sets that aren't mmengine's the images are unknown; mmdet's names stay. Arrays and pictures of
    16 bits, which mmdet can't show, are drawn too.

    Args: those of :class:`mmdet.engine.hooks.DetVisualizationHook`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.visualizer = Visualizer.get_current_instance()
        self.names: dict[str, str] = {}
        self.tested = 0

    def before_test(self, runner: Runner) -> None:
        """Name the images of the test set; see :class:`mmengine.hooks.Hook`."""
        if self.draw and self.test_out_dir is not None:
            self.names = picture_names(
                base.get_data_info(index)['img_path']
                for base in base_datasets(runner.test_dataloader.dataset)
                for index in range(len(base))
            )

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
                path = sample.img_path
                name = self.names.get(osp.abspath(path), osp.basename(path))
                # Arrays have a suffix that is none of a picture.
                name = name if cv2.haveImageWriter(name) else f'{name}.png'
                out_file = osp.join(runner.work_dir, runner.timestamp, self.test_out_dir, name)
            self._draw(sample, 'test_img', self.tested, out_file)

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
