"""Initial weights from the checkpoint of a similar network."""

from mmengine.logging import print_log
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import CheckpointLoader
from torch import nn

from ..layers.input_channels import is_adapted


@WEIGHT_INITIALIZERS.register_module()
class PartlyPretrained:
    """Takes over the entries of a checkpoint whose names and shapes are those of the module.

    One line of the log says how many. mmengine's ``Pretrained`` lists every other entry.
    Weights for three channels of the image are adapted to another number.

    Args:
        checkpoint: File, or any other address that mmengine's loader takes.

    Raises:
        ValueError: No entry fits.

    Example:
        >>> init_cfg = dict(type='PartlyPretrained', checkpoint='hgnetv2_b0.pth')
    """

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint

    def __call__(self, module: nn.Module) -> None:
        content = CheckpointLoader.load_checkpoint(self.checkpoint, map_location='cpu')
        given, own = content.get('state_dict', content), module.state_dict()
        fitting = {
            name: value
            for name, value in given.items()
            if name in own
            and (
                value.shape == own[name].shape
                or is_adapted(module.get_submodule(name.rpartition('.')[0]), value)
            )
        }
        if not fitting:
            raise ValueError(
                f'{self.checkpoint} has no entry of the name and shape of one of '
                f'{type(module).__name__}'
            )
        module.load_state_dict(fitting, strict=False)
        left = [name for name in own if name not in fitting]
        rest = f', {len(left)} start anew ({left[0]}, …)' if left else ''
        print_log(
            f'{type(module).__name__}: {len(fitting)} of {len(own)} entries are those of '
            f'{self.checkpoint}{rest}',
            logger='current',
        )
