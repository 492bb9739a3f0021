"""Weights in half precision for mixed precision, all made at once.

Autocast casts each weight for itself, and its gradient back: for D-FINE-L a thousand kernels a
step, which a GPU does faster than the host can start them. Here a few kernels cast all weights of a
part of the network. What the layers compute doesn't change.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, groupby
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
            sorted((weight for weight in group if times[weight[:2]] == 1), key=_place)
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
                scale, shifts = _scale_and_shifts(norms, dtype)
                parameters = [getattr(weight.layer, weight.name) for weight in group]
                cast = _CastTogether.apply(dtype, scale, len(norms), *parameters)
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


def _place(weight: _Weight) -> tuple[bool, int, bool]:
    """Convolutions with frozen norms come first; of these, weights with equally long rows together.

    One kernel multiplies them by their scales, and one their gradients, if those are wanted.
    """
    if weight.norm is None:
        return True, 0, False
    values = getattr(weight.layer, weight.name)
    return False, _row_length(values), values.requires_grad


def _lendable(group: Sequence[_Weight]) -> list[_Weight]:
    """Weights that are parameters: pruning and the like put something else in their place."""
    return [
        weight
        for weight in group
        if weight.name not in vars(weight.layer) and not is_parametrized(weight.layer, weight.name)
    ]


def _scale_and_shifts(
    norms: Sequence[FrozenBatchNorm2d], dtype: torch.dtype
) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """What rows of the weights of frozen norms' convolutions are multiplied by; their biases."""
    if not norms:
        return None, ()
    scale, shift = frozen_affines(norms)
    return scale, shift.to(dtype).split([len(norm.weight) for norm in norms])


def _row_length(weight: Tensor) -> int:
    """Numbers in a weight for each output channel; ``weight[0]`` would take time."""
    return weight.numel() // len(weight)


def _strides(weight: Tensor) -> tuple[int, ...]:
    """Strides of a weight (O, C, H, W) where it is contiguous or channels-last, else contiguous."""
    if weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last):
        return weight.stride()
    return torch.empty(weight.shape, device='meta').stride()


class _Stack:
    """New tensors like weights (O_i, ...) with rows of one length, which are behind each other.

    Args:
        weights: The weights, (O_i, C, H, W) each.
        dtype: Type of the new tensors.

    Attributes:
        rows: (Σ O_i, length) all rows.
        parts: Like the weights; they share the memory of ``rows``.
    """

    def __init__(self, weights: Sequence[Tensor], dtype: torch.dtype) -> None:
        length, ends = _row_length(weights[0]), [*accumulate(map(len, weights))]
        self.rows = weights[0].new_empty(ends[-1], length, dtype=dtype)
        self.parts = [
            self.rows.as_strided(weight.shape, _strides(weight), (end - len(weight)) * length)
            for weight, end in zip(weights, ends, strict=True)
        ]


def _runs(weights: Sequence[Tensor], wanted: Sequence[bool]) -> Iterator[tuple[slice, slice]]:
    """Slices of neighbours that can be stacked, all wanted or none; and slices of their rows."""
    begin = first_row = 0
    for _, same in groupby(zip(map(_row_length, weights), wanted, strict=True)):
        end = begin + len(list(same))
        last_row = first_row + sum(map(len, weights[begin:end]))
        yield slice(begin, end), slice(first_row, last_row)
        begin, first_row = end, last_row


def _contiguous(*tensors: Tensor) -> bool:
    return all(tensor.is_contiguous() for tensor in tensors)


class _CastTogether(torch.autograd.Function):
    """Weights rounded to ``dtype``, the rows of the first ``num_scaled`` times ``scale``."""

    @staticmethod
    def forward(
        ctx: Any, dtype: torch.dtype, scale: Tensor | None, num_scaled: int, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.scale, ctx.num_scaled, ctx.weights = scale, num_scaled, weights
        ctx.set_materialize_grads(False)
        trained = ctx.needs_input_grad[3:]
        scaled, others = weights[:num_scaled], weights[num_scaled:]
        runs = [*_runs(scaled, trained[:num_scaled])]
        products = [_Stack(scaled[run], scaled[0].dtype) for run, _ in runs]
        compat.copy_each([part for stack in products for part in stack.parts], [*scaled])
        for stack, (_, rows) in zip(products, runs, strict=True):
            stack.rows.mul_(scale[rows, None])
        halves = [_Stack(scaled[run], dtype) for run, _ in runs]
        cast = [torch.empty_like(weight, dtype=dtype) for weight in others]
        compat.copy_each(
            [*(stack.rows for stack in halves), *cast],
            [*(stack.rows for stack in products), *others],
        )
        cast = [*(part for stack in halves for part in stack.parts), *cast]
        # Nothing is computed for the gradients of frozen stages.
        ctx.mark_non_differentiable(
            *(half for half, wanted in zip(cast, trained, strict=True) if not wanted)
        )
        return tuple(cast)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        found, scaled = [None] * len(gradients), []
        wanted = [gradient is not None for gradient in gradients]
        for run, rows in _runs(ctx.weights[: ctx.num_scaled], wanted[: ctx.num_scaled]):
            if wanted[run.start]:
                stack = _Stack(ctx.weights[run], ctx.weights[0].dtype)
                found[run] = stack.parts
                scaled.append((stack.rows, ctx.scale[rows, None]))
        for index in range(ctx.num_scaled, len(gradients)):
            if wanted[index]:
                found[index] = torch.empty_like(ctx.weights[index])
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
        for rows, factors in scaled:
            rows.mul_(factors)
        return None, None, None, *found
