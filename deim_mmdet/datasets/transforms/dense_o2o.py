"""The transform that switches Dense O2O's image transforms by the stage of training."""

from collections.abc import Sequence, Sized

from deim_mmdet.utils.arguments import check_number
from deim_mmdet.utils.shared import SharedIntegers
from deim_mmdet.utils.stage import Stage

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmengine.dataset import Compose

from ...utils.errors import UserError
from .objects import DropTinyBoxes, refuse_map


@TRANSFORMS.register_module()
class DenseO2O(BaseTransform):
    """Load a sample and augment it as the stage of training says (DEIM, section 3.1).

    =============== ===========================================================
    stage           after loading
    =============== ===========================================================
    warm-up         nothing
    dense           ``mosaic`` with probability ``mosaic_prob``, else ``single``
    flat            ``single``
    no-augmentation nothing
    =============== ===========================================================

    In a mosaic ``shorter_side`` of each sample says how many pixels its tile needs.
    ``LoadImageChecked`` may then decode the image at a reduced size. Finally boxes are cut at the
    image border, and objects under ``min_size`` are dropped.

    The transform belongs in ``DenseO2ODataset`` or mmdet's ``MultiImageMixDataset``, over a dataset
    with an empty pipeline. Then the partners of a mosaic, its other samples, come as plain data
    infos, and only those that are used are loaded. Without mosaic it may stand in any pipeline.

    The stage is dense until ``DenseO2OScheduleHook`` calls :meth:`set_stage`, so that mmdet's
    ``browse_dataset.py`` shows Dense O2O. The stage is in shared memory. So workers of a data
    loader, persistent ones too, obey a change from their next sample on.

    Args:
        load: Transforms that load image and annotations.
        single: Transforms of a single image. None for none.
        mosaic: Transforms of a sample with its partners in ``mix_results``. One of them draws the
            partners by ``get_indexes`` (``DenseO2OMosaic``). None for no mosaic.
        mosaic_prob: Probability of ``mosaic`` in the dense stage. Default 0.5.
        min_size: Least width and height of an object in pixels of the augmented image. Default 1.

    Raises:
        ValueError: If ``mosaic_prob`` is no probability, ``min_size`` no size, or ``mosaic`` draws
            no partners.

    Example:
        >>> train_pipeline = [
        ...     dict(type='DenseO2O', mosaic_prob=0.5,
        ...          load=[dict(type='LoadImageChecked'),
        ...                dict(type='LoadAnnotations', with_bbox=True)],
        ...          mosaic=[dict(type='DenseO2OMosaic', scale=(640, 640)),
        ...                  dict(type='DenseO2OPhotometricDistort')],
        ...          single=[dict(type='DenseO2OPhotometricDistort'),
        ...                  dict(type='DenseO2OZoomOut'), dict(type='DenseO2OIoUCrop')]),
        ...     dict(type='ContiguousRandomFlip', prob=0.5),
        ...     dict(type='Resize', scale=(640, 640), keep_ratio=False),
        ...     dict(type='DropTinyBoxes'),
        ...     dict(type='PackDetImage')]
        >>> train_dataset = dict(
        ...     type='DenseO2ODataset', pipeline=train_pipeline,
        ...     dataset=dict(type='CocoDataset', ..., pipeline=[]))
    """

    def __init__(
        self,
        load: Sequence[dict],
        single: Sequence[dict] | None = None,
        mosaic: Sequence[dict] | None = None,
        mosaic_prob: float = 0.5,
        min_size: float = 1.0,
    ) -> None:
        self.load = _compose(load)
        self.single = _compose(single)
        self.mosaic = _compose(mosaic)
        self.mosaic_prob = check_number(self, 'mosaic_prob', mosaic_prob, 0, 1) if mosaic else 0.0
        drawers = [t for t in self.mosaic.transforms if hasattr(t, 'get_indexes')]
        if mosaic and len(drawers) != 1:
            raise UserError(
                f'{type(self).__name__}: mosaic needs exactly one transform that draws partners '
                f'(has get_indexes), e.g. DenseO2OMosaic, got {len(drawers)} in {mosaic!r}'
            )
        self._draw_partners = drawers[0].get_indexes if drawers else None
        # Tiles need no larger images. Other mosaics may not say how large their tiles are.
        self._tile_size = getattr(drawers[0], 'tile_size', None) if drawers else None
        self._clip = DropTinyBoxes(min_size=0)
        self._finish = DropTinyBoxes(min_size)
        self._stage = SharedIntegers(Stage.DENSE)

    @property
    def stage(self) -> Stage:
        """The stage of training that samples are made for."""
        return Stage(*self._stage.get())

    def set_stage(self, stage: Stage) -> None:
        """Switch to ``stage``, in this process and in those started from it."""
        self._stage.set(stage)

    def get_indexes(self, dataset: Sized) -> list[int]:
        """Indexes of the partners of the next sample; none where it becomes no mosaic."""
        if self.stage is Stage.DENSE and np.random.rand() < self.mosaic_prob:
            return self._draw_partners(dataset)
        return []

    def transform(self, results: dict) -> dict | None:
        """Load and augment; None where a transform gives None, as everywhere in mmdet."""
        stage = self.stage
        partners = results.pop('mix_results', None)
        if partners is None and stage is Stage.DENSE and self.mosaic_prob > 0:
            raise UserError(
                f'{type(self).__name__} got no mix_results: wrap the dataset in '
                'MultiImageMixDataset, with this transform in its pipeline, or set mosaic=None'
            )
        needed = self._tile_size if partners else None
        samples = [self._load(sample, needed) for sample in (results, *(partners or []))]
        if any(sample is None for sample in samples):
            return None
        results, *partners = samples
        if partners:
            results['mix_results'] = partners
            results = self.mosaic(results)
        elif stage in (Stage.DENSE, Stage.FLAT):
            results = self.single(results)
        if results is None:
            return None
        results.pop('mix_results', None)
        return self._finish(results)

    def _load(self, info: dict, shorter_side: int | None) -> dict | None:
        if shorter_side is not None:
            info['shorter_side'] = shorter_side
        results = self.load(info)
        if results is None:
            return None
        # In any stage, so that training fails at its start.
        refuse_map(results, self)
        results.pop('shorter_side', None)
        # Nobody needs raw annotations any more, and mmdet 3.3.0's MultiImageMixDataset copies the
        # whole sample before each transform.
        results.pop('instances', None)
        # Annotated boxes may reach over the border. After zoom-out that would be inside.
        return self._clip(results)

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(stage={self.stage.label}, '
            f'mosaic_prob={self.mosaic_prob}, min_size={self._finish.min_size}, load={self.load}, '
            f'single={self.single}, mosaic={self.mosaic})'
        )


def _compose(transforms: Sequence[dict] | None) -> Compose:
    # From mmdet's registry; Compose itself would ask the default scope.
    return Compose([TRANSFORMS.build(transform) for transform in transforms or ()])
