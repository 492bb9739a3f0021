"""ResNet-vd, the backbone of RT-DETR (arXiv 2304.08069)."""

from mmcv.cnn import build_norm_layer
from mmdet.models.backbones.resnet import BasicBlock, ResNetV1d
from mmdet.registry import MODELS
from torch import nn

from ...utils.errors import UserError
from ...utils.name_table import NameTable
from ..layers.conv_norm import freeze_norms
from ..layers.input_channels import RGB, adapt_input_channels

#: Pairs of a parameter's name in the published files and in :class:`ResNetVd`.
PUBLISHED_NAMES = [
    *(
        (f'conv1.conv1_{k + 1}.{theirs}.{{leaf}}', f'stem.{3 * k + offset}.{{leaf}}')
        for k in range(3)
        for theirs, offset in (('conv', 0), ('norm', 1))
    ),
    *(
        (f'res_layers.{s}.blocks.{{i}}.{theirs}.{{leaf}}', f'layer{s + 1}.{{i}}.{ours}.{{leaf}}')
        for s in range(4)
        for theirs, ours in (
            *((f'branch2{"abc"[k]}.conv', f'conv{k + 1}') for k in range(3)),
            *((f'branch2{"abc"[k]}.norm', f'bn{k + 1}') for k in range(3)),
            # From the second stage on the shortcut has an average pool and is a level deeper.
            (f'short{".conv" * (s > 0)}.conv', 'downsample.1'),
            (f'short{".conv" * (s > 0)}.norm', 'downsample.2'),
        )
    ),
]
_rename = NameTable(PUBLISHED_NAMES)


@MODELS.register_module()
class ResNetVd(ResNetV1d):
    """ResNet-vd as RT-DETR has it ("Bag of Tricks", arXiv 1812.01187).

    It differs from :class:`mmdet.models.ResNetV1d` in one convolution: in networks of basic blocks
    (18 and 34 layers) the shortcut of the very first block has a 1×1 convolution, too. Norms update
    their statistics in training, unless ``norm_eval`` is set. Loading renames the weights of the
    published files (``ResNet18_vd_pretrained_…``, ``ResNet50_vd_ssld_v2_…``).

    Args:
        depth: Number of layers: 18, 34, 50, 101 or 152.
        out_indices: Stages, from 0, whose features are returned.
        in_channels: Channels of the images. Weights for three are adapted, see
            :func:`~deim_mmdet.models.layers.input_channels.adapt_input_channels`.
        frozen_stages: How much doesn't train: -1 nothing, 0 the stem, 1 the stem and the first
            stage, up to 4 for the whole backbone.
        frozen_stem: The same as ``frozen_stages=0``.
        norm_frozen: Keep statistics, scale and shift of all norms as loaded.
        init_cfg: See :class:`mmengine.model.BaseModule`.
        kwargs: Further arguments of :class:`mmdet.models.ResNetV1d`, such as ``with_cp``.

    Raises:
        ValueError: ``frozen_stages`` is less than -1, or more than there are stages.
    """

    def __init__(
        self,
        depth: int,
        out_indices: tuple[int, ...] = (1, 2, 3),
        in_channels: int = RGB,
        frozen_stages: int = -1,
        frozen_stem: bool = False,
        norm_frozen: bool = False,
        init_cfg: dict | None = None,
        **kwargs,
    ) -> None:
        last = kwargs.get('num_stages', 4)
        if not -1 <= frozen_stages <= last:
            raise UserError(
                f'frozen_stages of ResNetVd must be among -1 … {last}, got {frozen_stages}'
            )
        super().__init__(
            depth=depth,
            out_indices=out_indices,
            in_channels=in_channels,
            frozen_stages=max(frozen_stages, 0) if frozen_stem else frozen_stages,
            init_cfg=init_cfg,
            **(dict(norm_eval=False) | kwargs),
        )
        self.image_channels = in_channels
        adapt_input_channels(self.stem[0])
        if norm_frozen:
            freeze_norms(self)
        self.register_load_state_dict_pre_hook(_rename_published_weights)

    def make_res_layer(self, **kwargs) -> nn.Module:
        """Make a stage; :class:`ResNetVd` says what differs from mmdet's."""
        layer = super().make_res_layer(**kwargs)
        first = layer[0]
        if isinstance(first, BasicBlock) and first.downsample is None:
            channels = kwargs['planes']
            first.downsample = nn.Sequential(
                # Other stages have an average pool here.
                nn.Identity(),
                nn.Conv2d(kwargs['inplanes'], channels, 1, bias=False),
                build_norm_layer(kwargs['norm_cfg'], channels)[1],
            )
        return layer


def rename_resnet_vd(name: str) -> str:
    """Name inside :class:`ResNetVd` of a parameter of the published ResNet-vd files.

    Args:
        name: E.g. ``res_layers.0.blocks.0.branch2a.conv.weight``. Any other name, for instance one
            of this package, is returned as it is.
    """
    try:
        return _rename(name)
    except KeyError:
        return name


def _rename_published_weights(module, state_dict, prefix, *_) -> None:
    for name in [name for name in state_dict if name.startswith(prefix)]:
        state_dict[prefix + rename_resnet_vd(name[len(prefix) :])] = state_dict.pop(name)
