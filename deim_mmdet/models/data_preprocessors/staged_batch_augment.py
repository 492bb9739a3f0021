"""What the batch augments of Dense O2O have in common."""

from deim_mmdet.utils.arguments import arguments_of
from deim_mmdet.utils.errors import UserError
from deim_mmdet.utils.stage import Stage

from mmdet.structures import DetDataSample
from mmdet.structures.mask import BaseInstanceMasks
from torch import nn


class StagedBatchAugment(nn.Module):
    """A batch augment that acts in some stages only; dense until :meth:`set_stage` is called.

    Attributes:
        picks_pixels: Whether the augment only picks pixels, whatever their values. Such an augment
            may act before normalisation and on any type. Other augments may write over the images
            where they are called with ``overwrite=True``.
        sees_places: Whether the augment treats pixels differently by their place. An augment that
            picks pixels and comes later in ``batch_augments`` may then not act before this one.
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


def refusal(augment: nn.Module, verb: str, field: str, value: object) -> UserError:
    """The error of an augment that cannot change a field of a sample together with its image.

    Args:
        augment: The augment.
        verb: What it does with images, e.g. 'mix'.
        field: Dotted name of the field in the sample.
        value: The field's value, whose type the message names.
    """
    name, kind = type(augment).__name__, type(value).__name__
    return UserError(
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
