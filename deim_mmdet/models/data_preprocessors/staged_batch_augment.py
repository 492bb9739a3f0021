"""What the batch augments of Dense O2O have in common."""

from deim_mmdet.utils.arguments import arguments_of
from deim_mmdet.utils.stage import Stage

from mmdet.structures import DetDataSample
from mmdet.structures.mask import BaseInstanceMasks
from torch import nn


class StagedBatchAugment(nn.Module):
    """A batch augment that acts in some stages only; dense until :meth:`set_stage` is called.

    ``picks_pixels`` is true for an augment that picks pixels, whatever their values. It may act
    before normalisation and on any type. Other augments, called with ``overwrite=True``, may write
    over the images. They treat all pixels alike, so that an augment that picks pixels may act
    before them; where ``sees_places`` is true they don't, and the order counts.
    """

    picks_pixels = False
    sees_places = False

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage.DENSE

    def set_stage(self, stage: Stage) -> None:
        """Switch to ``stage``."""
        self.stage = Stage(stage)

    def extra_repr(self) -> str:
        return f'{arguments_of(self)}, stage={self.stage.label}'


def refusal(augment: nn.Module, verb: str, field: str, value: object) -> ValueError:
    """Error for an ``augment`` that cannot change a ``field`` of a sample with its image."""
    name, kind = type(augment).__name__, type(value).__name__
    return ValueError(
        f'{name} cannot {verb} {field} ({kind}): take {name} out of batch_augments of the '
        'data_preprocessor, or leave this field out of the samples (with_seg=False, '
        'with_mask=False in LoadAnnotations)'
    )


def padded(masks: BaseInstanceMasks, size: tuple[int, int]) -> BaseInstanceMasks:
    """Masks padded to ``size`` (height, width)."""
    return masks if (masks.height, masks.width) == size else masks.pad(size)


def note_use_of_padding(sample: DetDataSample, size: tuple[int, int]) -> None:
    """Let an image count as large as its batch, of ``size`` (height, width).

    Heads with anchors leave out those beyond ``pad_shape``.
    """
    sample.set_metainfo({'img_shape': size, 'pad_shape': size})
