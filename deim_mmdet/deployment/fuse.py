"""Rewrites a trained detector into a faster one that computes the same in evaluation."""

import copy
import functools
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, is_norm
from torch import nn
from torch.nn.utils import fuse_conv_bn_weights

from ..models.backbones.hgnetv2 import Block, ConvBNAct, Stem
from ..models.dense_heads.query_selection_head import QuerySelectionHead
from ..models.layers.attention import SelfAttention
from ..models.layers.conv_norm import FrozenBatchNorm2d
from ..models.layers.decoder import DeformableCrossAttention
from ..models.layers.dfine_decoder import DFINEDecoder
from ..models.layers.rtdetr_decoder import ProjectedCrossAttention, RTDETRDecoder
from ..models.layers.vit import LayerScale, MaskedBiasLinear, ViTBlock
from ..models.necks.fusion import RepVGGBlock
from .cpu import OneDNNSelfAttention, optimize_for_cpu
from .cuda import CudaDetector
from .modules import (
    BoundedLayerNorm,
    Clamp,
    FusedCrossAttention,
    FusedSelfAttention,
    SplitBlock,
    SplitConvolution,
    TokenLinear,
    as_linear,
)


def fuse(model: nn.Module, half: bool = False, graph: bool = False) -> nn.Module:
    """A copy of a detector for evaluation, in which all that can be is merged or dropped.

    - A batch norm, trained or frozen, becomes part of the convolution before it.
    - A learnable affine after a ReLU becomes part of the convolution too: ``s·max(y, 0) + b``
      equals ``s·y + b`` with b as lower bound (upper bound for negative s).
    - Scales and a masked bias of DINOv3 become part of its linear layers.
    - The two branches of a RepVGG block become one 3×3 convolution.
    - Attention computes offsets and weights by one matrix product; see :mod:`.modules`.
    - Parts that evaluation doesn't use are dropped: further decoder layers, score heads and quality
      estimators of all layers but the last, and the denoising embedding.
    - D-FINE's table of bin distances, W(n) in the paper, is computed once.
    - A model on a CPU takes oneDNN's kernels where it can;
      see :func:`~deim_mmdet.deployment.cpu.optimize_for_cpu`.

    Outputs equal those of ``model.eval()`` but for rounding. The model itself stays as it is. The
    copy works with ``torch.compile``.

    Args:
        model: A detector with one of this package's heads. In its backbone and neck, a convolution
            is fused if a batch norm follows it in the order of registration; in an mmcv
            ``ConvModule``, in the order in which they act.
        half: Compute in half precision on a GPU, boxes excepted.
        graph: Replay a CUDA graph for each size of the input, on a GPU. Anywhere else, ``half`` and
            ``graph`` change nothing, and a warning says so.

    Returns:
        The copy, in evaluation mode, without gradients. It raises a ``RuntimeError`` if it runs in
        training mode. With ``half`` or ``graph`` on a GPU it is a
        :class:`~deim_mmdet.deployment.cuda.CudaDetector`.

    Raises:
        TypeError: The head is not one of this package's.
    """
    fused = _fuse(model)
    device = next(fused.parameters()).device.type
    if device == 'cuda' and (half or graph):
        detector = CudaDetector(fused, half, graph)
        detector.register_forward_pre_hook(_refuse_training)
        return detector
    if half or graph:
        _warn_of_plain_form(device)
    return optimize_for_cpu(fused) if device == 'cpu' else fused


@functools.cache
def _warn_of_plain_form(device: str) -> None:
    """Warn once for each kind of device."""
    warnings.warn(
        f'half precision and CUDA graphs need a model on a GPU, this one is on {device}: it is '
        'fused in its own precision',
        stacklevel=3,
    )


@torch.no_grad()
def fuse_for_export(model: nn.Module) -> nn.Module:
    """Like :func:`fuse`, in the form that runtimes other than PyTorch run fastest."""
    fused = _fuse(model)
    # These two wrap a layer and call it. So a subclass may be wrapped, whatever it computes.
    _replace(fused, lambda module: isinstance(module, nn.LayerNorm), BoundedLayerNorm)
    _replace(fused, lambda module: isinstance(module, nn.Linear), TokenLinear)
    _replace(fused, _can_split, SplitBlock)
    _replace(fused, _is(Stem), _split_stem)
    return fused


@torch.no_grad()
def _fuse(model: nn.Module) -> nn.Module:
    head = getattr(model, 'bbox_head', None)
    if not isinstance(head, QuerySelectionHead):
        raise TypeError(
            'fuse() is for detectors with a DFINEHead or RTDETRHead, got '
            f'{type(model).__name__} with the head {type(head).__name__}'
        )
    fused = copy.deepcopy(model).eval().requires_grad_(False)
    _fuse_norms(fused)
    _replace(fused, _is(RepVGGBlock), _merge_branches)
    _replace(fused, _is(ConvBNAct), _fold_affine)
    _replace(fused, _is(ViTBlock), _fold_scales)
    fused.bbox_head.denoising = fused.bbox_head.criterion = None
    _drop_unused_heads(fused.bbox_head.decoder)
    _replace(fused, _is(SelfAttention, OneDNNSelfAttention), FusedSelfAttention)
    _replace(fused, _is(DeformableCrossAttention, ProjectedCrossAttention), FusedCrossAttention)
    fused.register_forward_pre_hook(_refuse_training)
    return fused


def _refuse_training(module: nn.Module, args: tuple) -> None:
    if module.training:
        raise RuntimeError('a fused model is for evaluation: train the one that it was made from')


def _fuse_norms(module: nn.Module) -> None:
    """Fold every batch norm below ``module`` into the convolution registered before it."""
    previous = None
    for name, child in module.named_children():
        follows = isinstance(previous, nn.Conv2d) and _acts_in_order(module)
        if follows and _has_statistics(child):
            _fold_norm(previous, child)
            setattr(module, name, nn.Identity())
        _fuse_norms(child)
        previous = child


def _acts_in_order(module: nn.Module) -> bool:
    """Whether a norm registered after a convolution acts on what the convolution gives."""
    if not isinstance(module, ConvModule):
        return True
    return module.order.index('norm') == module.order.index('conv') + 1


def _has_statistics(module: nn.Module) -> bool:
    """Whether a module is a norm that uses the statistics of training in evaluation."""
    return isinstance(module, FrozenBatchNorm2d) or (
        is_norm(module) and getattr(module, 'running_mean', None) is not None
    )


def _fold_norm(conv: nn.Conv2d, norm: nn.Module) -> None:
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps,
        norm.weight, norm.bias,
    )  # fmt: skip


def _replace(
    module: nn.Module,
    chosen: Callable[[nn.Module], bool],
    build: Callable[[nn.Module], nn.Module],
) -> None:
    """Put ``build(child)`` in the place of every chosen module below ``module``."""
    for name, child in module.named_children():
        if chosen(child):
            setattr(module, name, build(child))
        else:
            _replace(child, chosen, build)


def _is(*kinds: type[nn.Module]) -> Callable[[nn.Module], bool]:
    """Whether a module is of one of these classes. A subclass may compute something else."""
    return lambda module: type(module) in kinds


def _can_split(module: nn.Module) -> bool:
    if type(module) is not Block or not module.residual:
        return False
    return SplitConvolution.can_split(module.aggregation[0])


def _split_stem(stem: Stem) -> Stem:
    """The stem without concatenation of its branches."""
    if SplitConvolution.can_split(stem.stem3):
        width = stem.stem1.conv.out_channels
        stem.stem3 = SplitConvolution(stem.stem3, width, stem.stem4.conv)
    return stem


def _merge_branches(block: RepVGGBlock) -> nn.Module:
    """One 3×3 convolution for the sum of a 3×3 and a 1×1 one, and the activation."""
    merged, pointwise = block.conv1.conv, block.conv2.conv
    merged.weight.add_(F.pad(pointwise.weight, (1, 1, 1, 1)))
    merged.bias.add_(pointwise.bias)
    return nn.Sequential(merged, block.act)


def _fold_affine(layer: ConvBNAct) -> nn.Module:
    """The layer with its learnable affine, if any, in the convolution and the activation."""
    if not isinstance(layer.lab, nn.Identity):
        scale, bias = layer.lab.scale.item(), layer.lab.bias.item()
        layer.conv.weight.mul_(scale)
        layer.conv.bias.mul_(scale).add_(bias)
        layer.act = Clamp(low=bias) if scale >= 0 else Clamp(high=bias)
        layer.lab = nn.Identity()
    return layer


def _fold_scales(block: ViTBlock) -> nn.Module:
    """The block with its scales, if any, in the linear layers before them, and a plain bias."""
    *_, last = block.mlp.children()
    for name, linear in (('ls1', block.attn.proj), ('ls2', last)):
        scale = getattr(block, name)
        if isinstance(scale, LayerScale):
            linear.weight.mul_(scale.gamma[:, None])
            linear.bias.mul_(scale.gamma)
            setattr(block, name, nn.Identity())
    if isinstance(block.attn.qkv, MaskedBiasLinear):
        block.attn.qkv = as_linear(block.attn.qkv.weight, block.attn.qkv.masked_bias())
    return block


def _drop_unused_heads(decoder: nn.Module) -> None:
    """Drop the decoder's parameters that evaluation doesn't use; the others keep their names.

    A decoder that isn't this package's stays as it is.
    """
    if isinstance(decoder, RTDETRDecoder):
        used = decoder.num_eval_layers
        decoder.layers, decoder.box_heads = decoder.layers[:used], decoder.box_heads[:used]
        decoder.score_heads = decoder.score_heads[:used]
        per_layer = [decoder.score_heads]
    elif isinstance(decoder, DFINEDecoder):
        per_layer = [decoder.score_heads, decoder.quality_estimators]
        decoder.fixed_bin_distances = decoder.bin_distances()
    else:
        per_layer = []
    for heads in per_layer:
        for i in range(len(heads) - 1):
            heads[i] = nn.Identity()
