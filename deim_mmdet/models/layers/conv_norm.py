"""Convolutions with the batch norms behind them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import compat
from .basic import build_activation, resized

# Attribute of a convolution whose weight contains this frozen norm for now; see
# :class:`~deim_mmdet.models.layers.half_weights.HalfWeights`.
LENT_NORM = 'lent_norm'


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose statistics, scale and shift are fixed.

    D-FINE L and X keep the pretrained norms of the backbone. All numbers are buffers: they are not
    trained, decayed or counted as parameters.

    Args:
        num_features: Number of channels.
        eps: Added to the variance.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer('weight', torch.ones(num_features))
        self.register_buffer('bias', torch.zeros(num_features))
        self.register_buffer('running_mean', torch.zeros(num_features))
        self.register_buffer('running_var', torch.ones(num_features))
        self.register_load_state_dict_pre_hook(self._drop_counter)

    @staticmethod
    def _drop_counter(norm: nn.Module, state_dict: dict, prefix: str, *args) -> None:
        """Before loading, drop the counter that a trainable norm has and a frozen one lacks."""
        state_dict.pop(f'{prefix}num_batches_tracked', None)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W), also in half precision, to the same in their type."""
        statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, self.weight, self.bias, training=False, eps=self.eps)


def frozen_affines(norms: Sequence[FrozenBatchNorm2d]) -> tuple[Tensor, Tensor]:
    """Scales and shifts that do the same as the norms, (Σ C,) each for C channels of each norm."""

    def joined(name: str) -> Tensor:
        parts = [getattr(norm, name) for norm in norms]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    variance, eps = joined('running_var'), {norm.eps for norm in norms}
    if len(eps) == 1:
        variance = variance + eps.pop()
    else:
        variance = torch.cat([norm.running_var + norm.eps for norm in norms])
    scale = joined('weight') * variance.rsqrt()
    return scale, torch.addcmul(joined('bias'), joined('running_mean'), scale, value=-1)


class BatchNorm2d(nn.BatchNorm2d):
    """torch's batch norm, except that :func:`count_batches` counts the batches of all norms.

    Nothing reads these counters. A GPU would add 1 to each of them with a kernel of its own.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.momentum is None:
            return super().forward(x)
        statistics = self.running_mean, self.running_var
        affine = self.weight, self.bias
        return F.batch_norm(x, *statistics, *affine, self.training, self.momentum, self.eps)


def count_batches(norms: Iterable[BatchNorm2d]) -> None:
    """Add 1 to the ``num_batches_tracked`` of each norm that is in training."""
    counters = [
        norm.num_batches_tracked
        for norm in norms
        # A norm without momentum averages over all batches, and counts them itself.
        if norm.training and norm.momentum is not None
    ]
    compat.add_to_each(counters, 1)


def freeze_norms(module: nn.Module) -> None:
    """Replace every batch norm inside ``module`` by a frozen one, before weights are loaded."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, child.eps))
        else:
            freeze_norms(child)


def convolve_and_norm(
    conv: nn.Conv2d, norm: nn.Module, features: Sequence[Tensor], with_cp: bool = True
) -> Tensor:
    """Convolve concatenated features and normalise the result, with little memory traffic.

    A frozen norm becomes part of the convolution's weights for this call.

    Args:
        conv: The convolution.
        norm: The norm after it.
        features: (B, C_i, H, W) each. Their channels C_i add up to the convolution's input.
        with_cp: Whether the backward pass forms the concatenation again, and with it what is
            :func:`upsampled`. Otherwise it is kept: a second copy of what other layers keep.

    Returns:
        (B, C, H', W') with the C channels of the convolution's output.
    """
    frozen = isinstance(norm, FrozenBatchNorm2d)
    weight, bias = conv.weight, conv.bias
    if frozen and vars(conv).get(LENT_NORM) is not norm:
        # A convolution before a norm has no bias of its own.
        scale, bias = frozen_affines([norm])
        weight = weight * scale[:, None, None, None]

    x = features[0] if len(features) == 1 else torch.cat(features, dim=1)
    with _keeping_parts(x, features) if with_cp and len(features) > 1 else nullcontext():
        x = F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return x if frozen else norm(x)


@contextmanager
def _keeping_parts(x: Tensor, parts: Sequence[Tensor]) -> Iterator[None]:
    """Context in which the backward pass keeps the parts of the concatenation x instead of x."""
    address = address_of(x)
    if address is None or not torch.is_grad_enabled():
        yield
        return
    # Nothing that stays may refer to x, which would keep it.
    shape, sources = x.shape, [_source(part) for part in parts]
    smaller = [source is not None for source in sources]
    kept = [(p if s is None else s).detach() for p, s in zip(parts, sources, strict=True)]
    sources.clear()

    def pack(saved: Tensor) -> tuple[list[Tensor], list[bool], list[int]]:
        tensors, small = [saved], [False]
        if saved.data_ptr() == address and saved.shape == shape:
            tensors, small = [*kept], smaller
        return tensors, small, compat.versions(tensors)

    with torch.autograd.graph.saved_tensors_hooks(pack, _joined):
        yield
    kept.clear()


def _joined(packed: tuple[list[Tensor], list[bool], list[int]]) -> Tensor:
    tensors, smaller, versions = packed
    if compat.versions(tensors) != versions:
        # As torch does where it keeps a tensor itself.
        raise RuntimeError(
            'features or weights of a convolution were changed in place after it; its backward '
            'pass needs them as they were (with_cp=False keeps concatenations)'
        )
    parts = [upsampled(t) if small else t for t, small in zip(tensors, smaller, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def upsampled(features: Tensor) -> Tensor:
    """Features (B, C, H, W) at twice the resolution, (B, C, 2 · H, 2 · W), each number four times.

    Where :func:`convolve_and_norm` joins them with others, its backward pass upsamples again.
    """
    out = resized(features, scale_factor=2.0, mode='nearest')
    if address_of(out) is not None and torch.is_grad_enabled():
        out.upsampled_from = features, compat.versions([features, out])
    return out


def _source(part: Tensor) -> Tensor | None:
    """What a part was :func:`upsampled` from; None where there is none, or one was changed."""
    source, versions = getattr(part, 'upsampled_from', (None, None))
    return None if source is None or compat.versions([source, part]) != versions else source


def address_of(tensor: Tensor) -> int | None:
    """Where a tensor lies in memory; None where that is unknown: a compiler, ``torch.func``."""
    if torch.compiler.is_compiling():
        # It decides by itself what it keeps.
        return None
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return None


class ConvNorm(nn.Module):
    """Convolution, batch norm and an optional activation; 'same' padding for odd kernels.

    mmcv's ``ConvModule`` does the same, but initialises its convolution otherwise (Kaiming,
    fan-out). The reference models start from torch's default initialisation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the kernel in pixels.
        stride: Stride in pixels.
        groups: Groups of channels that are convolved apart.
        act: Type of the activation in mmcv's registry, or ``None``.

    Attributes:
        with_cp: Whether the backward pass forms concatenated inputs again; see :func:`set_with_cp`.
    """

    with_cp = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        act: str | None = None,
    ) -> None:
        super().__init__()
        padding = (kernel_size - 1) // 2
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False
        )
        self.bn = BatchNorm2d(out_channels)
        self.act = nn.Identity() if act is None else build_activation(act)

    def forward(self, *features: Tensor) -> Tensor:
        """Features (B, C_i, H, W), concatenated along the channels, to (B, C, H', W')."""
        return self.act(convolve_and_norm(self.conv, self.bn, features, self.with_cp))


def set_with_cp(model: nn.Module, with_cp: bool) -> None:
    """Say for every :class:`ConvNorm` whether the backward pass joins its inputs again.

    That saves memory, and time on a CPU. On a GPU it takes as long as without: a concatenation is
    one kernel.
    """
    for module in model.modules():
        if isinstance(module, ConvNorm):
            module.with_cp = with_cp
