"""Checks all data sets of a config."""

import os
import os.path as osp
from collections.abc import Sequence
from operator import itemgetter

from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from ..datasets import CheckedCocoDataset, DenseO2ODataset, LoadImageChecked
from ..datasets.annotation_file import read_annotation_file
from ..datasets.annotation_problems import Finding
from ..datasets.annotations import check_annotations
from ..utils.components import (
    component_class,
    component_name,
    dataset_configs,
    find_component,
)
from ..utils.errors import UserError
from .cache import cached_report
from .images import ImageTask
from .limits import DetectionLimit, beyond_limits, detection_limits
from .pool import inspect_images
from .report import DatasetReport

# Variables by which launchers say which of several processes this one is.
RANK_VARIABLES = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')

SPLITS = dict(training='train_dataloader', validation='val_dataloader', test='test_dataloader')


def check_data(config: Config, splits: Sequence[str] = ('training', 'validation')) -> None:
    """Check the annotations of data sets before they are used, and print what is found.

    Only the first of several processes checks. Files that were checked before come from a cache.

    Args:
        config: The run's config.
        splits: The sets to check: 'training', 'validation', 'test'.

    Raises:
        ValueError: Something would break the run; the message names it and the remedy.
    """
    if any(os.environ.get(variable, '0') != '0' for variable in RANK_VARIABLES):
        return
    reports = check_datasets(config, splits=splits)
    for report in reports:
        print(report.text(), flush=True)
    if any(report.breaks for report in reports):
        raise UserError(
            f'the data would break {"training" if "training" in splits else "the evaluation"}, '
            'see BREAKS above: tools/check_dataset.py with this config lists all of it; '
            '--no-check-data goes on regardless'
        )


def check_datasets(
    config: Config,
    images: bool = False,
    workers: int = 0,
    use_cache: bool = True,
    splits: Sequence[str] = tuple(SPLITS),
) -> list[DatasetReport]:
    """Check every data set in COCO format that a config trains, validates or tests with.

    Args:
        config: A config; its data sets are read but not built.
        images: Whether to read all images too.
        workers: Number of processes that read images; with 0, this process reads them.
        use_cache: Whether the report of an unchanged annotation file may come from the cache.
        splits: The sets to check: 'training', 'validation', 'test'.

    Returns:
        A report for each annotation file, and for each way in which it is read.
    """
    init_default_scope(config.get('default_scope', 'mmdet'))
    reports: dict[tuple, DatasetReport] = {}
    for split in splits:
        outer = (config.get(SPLITS[split]) or {}).get('dataset')
        loader = find_component(TRANSFORMS, outer, LoadImageFromFile) or dict(
            type='LoadImageChecked'
        )
        mixing = find_component(DATASETS, outer, DenseO2ODataset) or {}
        skips = bool(mixing.get('skip_unreadable'))
        limits = detection_limits(config, split)
        for options in dataset_configs(outer):
            if not reads_coco(options):
                report = DatasetReport(str(options.get('ann_file', '')), splits=[split])
                report.add([Finding('other_format', False, component_name(options))])
                reports[split, repr(options)] = report
                continue
            source = CocoSource(options, loader, skips, limits)
            if source.key not in reports:
                reports[source.key] = source.check(images, workers, use_cache)
            reports[source.key].splits.append(split)
    _find_sets_without_annotations(list(reports.values()))
    return list(reports.values())


def _find_sets_without_annotations(reports: Sequence[DatasetReport]) -> None:
    """Add a finding to each report of a set without any annotation of its classes.

    A file of background images alone is no fault where another file of the set has objects.
    """
    for split in SPLITS:
        files = [report for report in reports if split in report.splits]
        # Files that have no images or no usable box, or could not be read, have their own finding.
        if any(
            report.used or not report.images or 'no_usable_box' in report.problems
            for report in files
        ):
            continue
        for report in files:
            if 'no_annotations' not in report.problems:
                breaks = split == 'training'
                says = (
                    f'{report.annotations} annotations, none of the classes can be used'
                    if report.annotations
                    else '"annotations" is empty'
                )
                report.add([Finding('no_annotations', breaks, says)])


class CocoSource:
    """An annotation file with its images, as a data set of a config reads them.

    Args:
        options: The config of the data set.
        loader: Config of the transform that reads its images.
        skips_unreadable: Whether training goes on without images that it can't read.
        limits: The limits on the detections of an image that count in its evaluation.
    """

    def __init__(
        self,
        options: dict,
        loader: dict,
        skips_unreadable: bool,
        limits: Sequence[DetectionLimit],
    ) -> None:
        self.dataset = DATASETS.build(dict(options, pipeline=[], lazy_init=True))
        # CheckedCocoDataset may rename images or leave some out.
        self.image_file = getattr(self.dataset, 'image_file', itemgetter('file_name'))
        self.loader = TRANSFORMS.build(loader)
        # Errors of other loaders can't be told from errors of the program, so they end training.
        self.skips_unreadable = skips_unreadable and isinstance(self.loader, LoadImageChecked)
        self.limits = tuple(limits)
        self.evaluation = bool(self.dataset.test_mode)
        self.classes = self.dataset.metainfo.get('classes')
        self.folder = self.dataset.data_prefix.get('img') or ''
        self.key = (
            self.dataset.ann_file,
            self.folder,
            self.evaluation,
            tuple(self.classes or ()),
            repr(self.loader),
            self.skips_unreadable,
            self.limits,
        )

    def check(self, images: bool, workers: int, use_cache: bool) -> DatasetReport:
        """Report of the annotations and, with ``images``, of all images."""
        if images or not use_cache:
            return self._check(images, workers)
        settings = [self.evaluation, self.classes, self.limits]
        report = cached_report(self.dataset.ann_file, settings, self._check)
        # A cached report may name another file with the same contents.
        report.annotation_file, report.image_folder = self.dataset.ann_file, self.folder
        return report

    def _check(self, images: bool = False, workers: int = 0) -> DatasetReport:
        report = DatasetReport(self.dataset.ann_file, self.folder)
        try:
            content = read_annotation_file(
                self.dataset.ann_file, self.evaluation, self.dataset.backend_args
            )
        except (FileNotFoundError, ValueError) as error:
            report.add([Finding('unusable_file', True, str(error))])
            return report
        checked = check_annotations(content, self.classes, self.evaluation)
        report.images = len(checked.images)
        report.annotations, report.used = checked.total, len(checked.annotations)
        report.add(checked.findings)
        report.add(beyond_limits(checked, self.limits))
        if images:
            tasks = [
                ImageTask(osp.join(self.folder, name), name, (image['width'], image['height']))
                for image in checked.images
                if (name := self.image_file(image)) is not None
            ]
            findings = inspect_images(tasks, self.loader, workers)
            if self.skips_unreadable:
                findings = (finding._replace(breaks=False) for finding in findings)
            report.add(findings)
            report.images_read = True
        return report


def reads_coco(options: dict) -> bool:
    """Whether a data set reads COCO format; some that derive from ``CocoDataset`` don't."""
    ways = (CheckedCocoDataset.load_data_list, CocoDataset.load_data_list)
    return getattr(component_class(DATASETS, options), 'load_data_list', None) in ways
