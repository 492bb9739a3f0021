"""The data set that gives the transforms of Dense O2O other samples to mix in."""

import logging
from collections.abc import Sequence

from deim_mmdet.utils.errors import UserError
from deim_mmdet.utils.randomness import Purpose, seeded
from deim_mmdet.utils.shared import SharedIntegers

import cv2
import numpy as np
from mmdet.datasets import MultiImageMixDataset
from mmdet.registry import DATASETS
from mmengine.logging import print_log
from torch.utils.data import Dataset

from .transforms.loading import UnreadableImageError


@DATASETS.register_module()
class DenseO2ODataset(MultiImageMixDataset):
    """mmdet's ``MultiImageMixDataset`` without its copies of the sample before each transform.

    Those copies take about as long as the transforms of a single image. Here a transform gets a new
    dictionary with the same values. It may replace values; later transforms also see what it
    changes in place. So ``dataset`` must give a new sample at each access, as every ``BaseDataset``
    does. Where a transform gives None, the sample is made once more from its beginning, with other
    partners, that is, other samples to mix in.

    A copy in another process uses as many threads of OpenCV as this one. Forked workers of a data
    loader do so anyway; spawned ones would use all cores each.

    After :meth:`set_seed` (``DerivedSeedHook`` calls it), all that is drawn for a sample and its
    partners follows from seed, epoch and index. Workers, order and resuming make no difference.
    Wrappers that give an image several indexes (``RepeatDataset``, ``ClassBalancedDataset``) belong
    inside ``dataset``. Around this data set they would repeat the augmented sample.

    Args:
        dataset: Data set of single images, or its config; with an empty pipeline for ``DenseO2O``.
        pipeline: Configs of the transforms. Those with ``get_indexes(dataset)`` get the samples of
            these indexes in ``mix_results``.
        skip_type_keys: Types of transforms to leave out. Default None.
        max_refetch: Tries of the pipeline until it gives a sample. Default 15.
        skip_unreadable: Whether to take a sample of another index where ``LoadImageChecked`` can't
            read an image, in up to ``max_refetch`` tries. Each process warns once of each file.
            Default False: training stops there.

    Raises:
        ValueError: A transform behind ``DenseO2O`` mixes in samples, which nothing has loaded.
        RuntimeError: ``max_refetch`` tries gave no sample; the message names the transform at which
            the last one ended.
        UnreadableImageError: An image can't be read and isn't skipped; the message names it.

    Example:
        >>> train_dataset = dict(
        ...     type='DenseO2ODataset', pipeline=[dict(type='DenseO2O', ...), ...],
        ...     dataset=dict(type='CocoDataset', ..., pipeline=[]))
    """

    def __init__(
        self,
        dataset: dict | Dataset,
        pipeline: Sequence[dict],
        skip_type_keys: Sequence[str] | None = None,
        *args,
        skip_unreadable: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(dataset, pipeline, skip_type_keys, *args, **kwargs)
        self.skipped_types = tuple(skip_type_keys or ())
        self.skip_unreadable = skip_unreadable
        self._reported: set[str] = set()
        # Seed and epoch, not negative once they are set.
        self._seed = SharedIntegers(-1, -1)

    def update_skip_type_keys(self, skip_type_keys: Sequence[str]) -> None:
        """Leave out other types of transforms from now on; mmdet's hooks call it."""
        super().update_skip_type_keys(skip_type_keys)
        self.skipped_types = tuple(skip_type_keys)

    def set_seed(self, seed: int, epoch: int) -> None:
        """Make the samples follow from numbers, in this process and all worker processes.

        Args:
            seed: Seed of the training, not negative.
            epoch: The epoch that comes next, not negative.
        """
        self._seed.set(seed, epoch)

    def get_cat_ids(self, idx: int) -> list[int]:
        """Labels of an image's objects, for mmdet's ``ClassAwareSampler``; partners don't count."""
        return self.dataset.get_cat_ids(idx)

    def __getitem__(self, idx: int) -> dict:
        seed, epoch = self._seed.get()
        if seed < 0:
            return self._readable_sample(idx)
        with seeded(seed, Purpose.SAMPLE, epoch, int(idx) % len(self)):
            return self._readable_sample(idx)

    def _readable_sample(self, idx: int) -> dict:
        if self.skip_unreadable:
            for _ in range(self.max_refetch - 1):
                try:
                    return self._sample(idx)
                except UnreadableImageError as error:
                    self._report(str(error))
                    idx = np.random.randint(len(self))
        return self._sample(idx)

    def _report(self, error: str) -> None:
        if error not in self._reported:
            self._reported.add(error)
            print_log(f'Skipped: {error}', logger='current', level=logging.WARNING)

    def _sample(self, idx: int) -> dict:
        for _ in range(self.max_refetch):
            # A transform that gives None may have changed boxes in place: all begins anew.
            info = results = self.dataset[idx]
            for transform, kind in zip(self.pipeline, self.pipeline_types, strict=True):
                if kind not in self.skipped_types:
                    if 'img' in results and 'img' not in info:
                        _check_no_partners(transform)
                    results = self._transformed(results, transform)
                if results is None:
                    break
            else:
                return results
        raise RuntimeError(
            f'{type(transform).__name__} gave no sample in {self.max_refetch} tries for '
            f'{info.get("img_path")}: check the annotations, or raise max_refetch'
        )

    def __getstate__(self) -> dict:
        return {**self.__dict__, 'opencv_threads': cv2.getNumThreads()}

    def __setstate__(self, state: dict) -> None:
        state = dict(state)
        cv2.setNumThreads(state.pop('opencv_threads'))
        self.__dict__.update(state)

    def _transformed(self, results: dict, transform) -> dict | None:
        sample = dict(results)
        draw_partners = getattr(transform, 'get_indexes', None)
        if draw_partners is not None:
            # Some of mmdet's transforms give a single number.
            indexes = np.atleast_1d(draw_partners(self.dataset)).tolist()
            partners = [self.dataset[index] for index in indexes]
            if any(partner is None for partner in partners):
                return None
            sample['mix_results'] = partners
        sample = transform(sample)
        if sample is not None:
            sample.pop('mix_results', None)
        return sample


def _check_no_partners(transform) -> None:
    """Refuse a transform that mixes in samples where the inner data set doesn't load them."""
    if hasattr(transform, 'get_indexes'):
        raise UserError(
            f'{type(transform).__name__} mixes other samples in, but nothing has loaded these: '
            'DenseO2O loads its own. Take its mosaic and mixup, or replace DenseO2O by transforms '
            "that load in the pipeline of the train set's inner data set"
        )
