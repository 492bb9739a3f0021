"""What Dense O2O's batch augments, ``batch_augments`` of mmdet's preprocessor, have in common."""

from deim_mmdet.utils.stage import Stage

from mmdet.structures.mask import BaseInstanceMasks
from torch import nn


class StagedBatchAugment(nn.Module):
    """A batch augment that acts in some stages only; dense until :meth:`set_stage` is called.

    One that only picks pixels, whatever their values, says so by ``picks_pixels``: it may act
    before the images are normalised, and on any type. The others treat all pixels alike, and may
    write over the images where they are called with ``overwrite=True``.
    """

    picks_pixels = False

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage.DENSE

    def set_stage(self, stage: Stage) -> None:
        """Switch to ``stage``."""
        self.stage = Stage(stage)


def refusal(augment: nn.Module, verb: str, field: str, value: object) -> ValueError:
    """What to raise where ``augment`` cannot change a ``field`` of a sample with its image."""
    name, kind = type(augment).__name__, type(value).__name__
    return ValueError(
        f'{name} cannot {verb} {field} ({kind}): take {name} out of batch_augments of the '
        'data_preprocessor, or leave this field out of the samples (with_seg=False, '
        'with_mask=False in LoadAnnotations)'
    )


def padded(masks: BaseInstanceMasks, size: tuple[int, int]) -> BaseInstanceMasks:
    """Masks at ``size`` (height, width)."""
    return masks if (masks.height, masks.width) == size else masks.pad(size)
