"""Initial weights from the checkpoint of a similar network."""

from mmengine.logging import print_log
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import CheckpointLoader
from torch import nn

from ...utils.errors import UserError


@WEIGHT_INITIALIZERS.register_module()
class PartlyPretrained:
    """Takes over the entries of a checkpoint whose names and shapes are those of the module.

    One line of the log says how many. mmengine's ``Pretrained`` lists every other entry.
    Weights for three channels of the image are adapted to another number.

    Args:
        checkpoint: File, or any other address that mmengine's loader takes.

    Raises:
        ValueError: No entry of the checkpoint has the name and shape of one of the module.

    Example:
        >>> init_cfg = dict(type='PartlyPretrained', checkpoint='hgnetv2_b0.pth')
    """

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint

    def __call__(self, module: nn.Module) -> None:
        content = CheckpointLoader.load_checkpoint(self.checkpoint, map_location='cpu')
        own, fitting = module.state_dict(), set()

        def leave_out_others(part: nn.Module, state_dict: dict, prefix: str, *_) -> None:
            for name, _ in (
                *part.named_parameters(recurse=False),
                *part.named_buffers(recurse=False),
            ):
                name = f'{prefix}{name}'
                if name in own and name in state_dict:
                    if state_dict[name].shape == own[name].shape:
                        fitting.add(name)
                    else:
                        del state_dict[name]

        # Registered last, these hooks run after those that rename and adapt the entries of a part.
        handles = [
            part.register_load_state_dict_pre_hook(leave_out_others) for part in module.modules()
        ]
        try:
            module.load_state_dict(dict(content.get('state_dict', content)), strict=False)
        finally:
            for handle in handles:
                handle.remove()
        if not fitting:
            raise UserError(
                f'{self.checkpoint} has no entry of the name and shape of one of '
                f'{type(module).__name__}: name the checkpoint of a similar network in init_cfg'
            )
        left = [name for name in own if name not in fitting]
        rest = f', {len(left)} start anew ({left[0]}, …)' if left else ''
        print_log(
            f'{type(module).__name__}: {len(fitting)} of {len(own)} entries are those of '
            f'{self.checkpoint}{rest}',
            logger='current',
        )
