"""Writes pictures of detections that do not overwrite each other."""

import os.path as osp
from collections import Counter
from collections.abc import Iterable

from mmdet.engine.hooks import DetVisualizationHook
from mmdet.registry import HOOKS
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from ... import compat
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


class RenamingVisualizer:
    """A visualizer that writes the pictures of images under the names of :func:`picture_names`.

    Args:
        visualizer: The visualizer that draws and writes.
    """

    def __init__(self, visualizer: Visualizer) -> None:
        self.visualizer = visualizer
        self.names: dict[str, str] = {}

    def add_datasample(self, *args, data_sample, out_file: str | None = None, **kwargs) -> None:
        """Draw a sample; see :class:`mmdet.visualization.DetLocalVisualizer`."""
        name = self.names.get(osp.abspath(data_sample.img_path))
        if out_file is not None and name is not None:
            out_file = osp.join(osp.dirname(out_file), name)
        self.visualizer.add_datasample(*args, data_sample=data_sample, out_file=out_file, **kwargs)


@HOOKS.register_module()
class UniqueNameVisualizationHook(DetVisualizationHook):
    """mmdet's hook, with a picture in ``test_out_dir`` for each image of the test set.

    mmdet 3.3.0 overwrites pictures of images with the same name, as in folders of several cameras.
    Here names follow from the test set alone, so that all processes give the same ones. For data
    sets that aren't mmengine's the images are unknown; mmdet's names stay.

    Args: those of :class:`mmdet.engine.hooks.DetVisualizationHook`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.renaming = compat.replace_visualizer(self, RenamingVisualizer)

    def before_test(self, runner: Runner) -> None:
        """Name the images of the test set; see :class:`mmengine.hooks.Hook`."""
        if self.draw and self.test_out_dir is not None:
            self.renaming.names = picture_names(
                base.get_data_info(index)['img_path']
                for base in base_datasets(runner.test_dataloader.dataset)
                for index in range(len(base))
            )
