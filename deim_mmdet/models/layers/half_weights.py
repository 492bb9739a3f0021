"""Weights in half precision for mixed precision, all made at once.

Autocast casts each weight for itself, and its gradient back: for D-FINE-L a thousand kernels a
step, which a GPU does faster than the host can start them. Here a few kernels cast all weights of a
part of the network. What the layers compute doesn't change.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.parametrize import is_parametrized

from ... import compat
from .conv_norm import LENT_NORM, ConvNorm, FrozenBatchNorm2d, frozen_affines


class _Weight(NamedTuple):
    """A parameter, the layer that holds it, and its name there.

    Attributes:
        norm: The frozen norm behind a convolution, which becomes part of its weight.
    """

    layer: nn.Module
    name: str
    norm: FrozenBatchNorm2d | None = None


class HalfWeights:
    """Lends layers their weights in half precision.

    While a weight is lent, ``layer.weight`` is the cast weight; the layer's parameters stay what
    they are. Layers are the convolutions of every :class:`ConvNorm`, and the linear layers of
    ``linear_parts``. Each part casts by itself. So processes can exchange the gradients of the last
    layers while those of earlier ones are still computed.

    Gradient checkpointing that doesn't re-enter autograd may not contain a :class:`ConvNorm` with a
    frozen norm: its backward pass computes without lent weights.

    Args:
        parts: Parts of the network, which run under autocast only.
        linear_parts: Those of them whose linear layers are lent weights.
    """

    def __init__(self, parts: Sequence[nn.Module], linear_parts: Sequence[nn.Module]) -> None:
        linear = {layer for part in linear_parts for layer in part.modules()}
        groups: list[list[_Weight]] = []
        seen: set[nn.Module] = set()
        for part in parts:
            new = [module for module in part.modules() if module not in seen]
            seen.update(new)
            groups.append([w for module in new for w in _weights_of(module, module in linear)])
        # One convolution may have two norms, and so no weight that contains its norm.
        times = Counter((weight.layer, weight.name) for group in groups for weight in group)
        self._groups = [
            # Convolutions with frozen norms come first.
            sorted(
                (weight for weight in group if times[weight[:2]] == 1),
                key=lambda weight: weight.norm is None,
            )
            for group in groups
        ]

    @contextmanager
    def __call__(self, dtype: torch.dtype) -> Iterator[None]:
        """Context in which the layers have weights of a type.

        Args:
            dtype: The type, ``torch.float16`` or ``torch.bfloat16``.
        """
        before: list[tuple[dict[str, Any], str, Any]] = []

        def lend(layer: nn.Module, name: str, lent: Any) -> None:
            # Python looks in this dictionary before it asks the module for its parameter.
            attributes = vars(layer)
            before.append((attributes, name, attributes.get(name)))
            attributes[name] = lent

        try:
            for group in filter(None, map(_lendable, self._groups)):
                norms = [weight.norm for weight in group if weight.norm is not None]
                scales, shifts = _scales_and_shifts(norms, dtype)
                parameters = [getattr(weight.layer, weight.name) for weight in group]
                cast = _CastTogether.apply(dtype, scales, *parameters)
                for weight, half in zip(group, cast, strict=True):
                    lend(weight.layer, weight.name, half)
                for weight, shift in zip(group, shifts, strict=False):
                    lend(weight.layer, 'bias', shift)
                    lend(weight.layer, LENT_NORM, weight.norm)
            yield
        finally:
            for attributes, name, value in reversed(before):
                if value is None:
                    attributes.pop(name, None)
                else:
                    attributes[name] = value


def _weights_of(module: nn.Module, linear: bool) -> list[_Weight]:
    if isinstance(module, ConvNorm):
        norm = module.bn if isinstance(module.bn, FrozenBatchNorm2d) else None
        return [_Weight(module.conv, 'weight', norm)]
    names = []
    if linear and isinstance(module, nn.Linear):
        names = ['weight', 'bias']
    elif linear and isinstance(module, nn.MultiheadAttention):
        names = ['in_proj_weight', 'in_proj_bias']
    return [_Weight(module, name) for name in names if getattr(module, name) is not None]


def _lendable(group: Sequence[_Weight]) -> list[_Weight]:
    """Weights that are parameters: pruning and the like put something else in their place."""
    return [
        weight
        for weight in group
        if weight.name not in vars(weight.layer) and not is_parametrized(weight.layer, weight.name)
    ]


def _scales_and_shifts(
    norms: Sequence[FrozenBatchNorm2d], dtype: torch.dtype
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """What the weights of frozen norms' convolutions are multiplied by, and their biases."""
    if not norms:
        return [], ()
    scale, shift = frozen_affines(norms)
    widths = [len(norm.weight) for norm in norms]
    scales = [part[:, None, None, None] for part in scale.split(widths)]
    return scales, shift.to(dtype).split(widths)


def _contiguous(*tensors: Tensor) -> bool:
    return all(tensor.is_contiguous() for tensor in tensors)


class _CastTogether(torch.autograd.Function):
    """Weights, the first of them times ``scales``, rounded to ``dtype``."""

    @staticmethod
    def forward(
        ctx: Any, dtype: torch.dtype, scales: list[Tensor], *weights: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.scales, ctx.weights = scales, weights
        ctx.set_materialize_grads(False)
        halves = [torch.empty_like(weight, dtype=dtype) for weight in weights]
        scaled = [weight * scale for weight, scale in zip(weights, scales, strict=False)]
        compat.copy_each(halves, [*scaled, *weights[len(scales) :]])
        # Nothing is computed for the gradients of frozen stages.
        trained = ctx.needs_input_grad[2:]
        ctx.mark_non_differentiable(
            *(half for half, wanted in zip(halves, trained, strict=True) if not wanted)
        )
        return tuple(halves)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        found = [
            None if gradient is None else torch.empty_like(weight)
            for weight, gradient in zip(ctx.weights, gradients, strict=True)
        ]
        # Those that lie in memory as their weights do are copied together.
        alike, others = [], []
        for target, gradient in zip(found, gradients, strict=True):
            if gradient is None:
                continue
            if target.stride() != gradient.stride() and _contiguous(target, gradient):
                # Strides of 1x1 kernels differ where they mean nothing.
                gradient = gradient.as_strided(target.shape, target.stride())
            same = target.stride() == gradient.stride()
            (alike if same else others).append((target, gradient))
        for pairs in filter(None, (alike, others)):
            compat.copy_each(*map(list, zip(*pairs, strict=True)))
        for gradient, scale in zip(found, ctx.scales, strict=False):
            if gradient is not None:
                gradient.mul_(scale)
        return None, None, *found
