"""Scale and shift of features by two learnable numbers (learnable affine block of PP-HGNetV2)."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _Affine(torch.autograd.Function):
    """``scale * x + bias``, computed in the type of the two scalars and rounded once to that of x.

    Gradients of the scalars are sums in their type: over a feature map they overflow float16.
    """

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        if x.device.type == 'cpu':
            return (x * scale).add_(bias).to(x.dtype)
        # One kernel, which casts what it reads and writes. On a CPU it is slow.
        return torch.addcmul(bias, x, scale, out=torch.empty_like(x))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        if x.device.type == 'cuda':
            by_x = torch.mul(grad, scale, out=torch.empty_like(grad))
            # A batch norm's gradient needs the sums of grad and of grad * (x - mean) for each
            # channel. Its kernel for channels-last tensors reads both once, and computes in float32
            # at least.
            grad, x = (each.contiguous(memory_format=torch.channels_last) for each in (grad, x))
            zeros = x.new_zeros(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
            sums = torch.batch_norm_backward_reduce(grad, x, zeros, zeros, None, True, False, False)
            by_bias, by_scale = (each.sum()[None].to(scale.dtype) for each in sums[:2])
            return by_x, by_scale, by_bias
        by_x = (grad * scale).to(grad.dtype)
        # The type of the scalars, since the products overflow float16, too.
        product = grad * x if x.dtype == scale.dtype else grad.to(scale.dtype) * x
        return by_x, product.sum()[None], grad.sum(dtype=scale.dtype)[None]


class LearnableAffine(nn.Module):
    """``scale * x + bias`` with two learnable scalars, which start as 1 and 0.

    The result has the shape and the type of x.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            # A compiler makes one kernel of this. An exporter can't trace :class:`_Affine`.
            return (x * self.scale + self.bias).to(x.dtype)
        return _Affine.apply(x, self.scale, self.bias)
