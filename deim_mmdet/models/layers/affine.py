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
        if x.device.type == 'cpu':
            by_x = (grad * scale).to(grad.dtype)
        else:
            by_x = torch.mul(grad, scale, out=torch.empty_like(grad))
        # The type of the scalars, since the products overflow float16, too.
        product = grad * x if x.dtype == scale.dtype else torch.addcmul(scale.new_zeros(1), grad, x)
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
