"""Products of half precision on any CPU, as a GPU computes them."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {'convolution', 'convolution_backward', 'mm', 'bmm', 'addmm', 'baddbmm'}
HALVES = (torch.bfloat16, torch.float16)


class HalfProducts(TorchDispatchMode):
    """Context in which convolutions and matrix products of half precision run in float32.

    Only the result is rounded, as on a GPU. Without it CPUs that lack instructions for half
    precision are a hundred times slower, and round no better.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ not in PRODUCTS:
            return func(*args, **kwargs)
        half = next((x.dtype for x in args if isinstance(x, torch.Tensor)), None)
        if half not in HALVES:
            return func(*args, **kwargs)
        single = [x.float() if isinstance(x, torch.Tensor) else x for x in args]
        results = func(*single, **kwargs)
        if isinstance(results, torch.Tensor):
            return results.to(half)
        return tuple(None if x is None else x.to(half) for x in results)
