"""A GPU that computes nothing: it shows what a training would tell a GPU to do.

torch's fake tensors have shapes, types and a device, but no numbers. Here they stand for the
tensors on a GPU, while tensors on the host are real. So everything runs as it would with a GPU: the
choice of kernels, the types of autocast, each transfer. Tensors of two devices in one operation are
an error, as on a GPU.
"""

import ctypes
import hashlib
import inspect
import subprocess
import sys
import tempfile
import weakref
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import deim_mmdet
from deim_mmdet.utils.files import cache_folder

import mmdet
import mmengine.device.utils
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .operators import NO_KERNELS

SOURCE = Path(__file__).with_suffix('.cpp')
PACKAGES = [str(Path(package.__file__).parent) for package in (deim_mmdet, mmdet, mmengine)]
# The device of a fake tensor is asked for by an operator, too.
NO_CALLS = {*NO_KERNELS, 'device'}
OF_FEATURES = ('convolution', 'cudnn_batch_norm')
READ = '_local_scalar_dense'
# The size of a piece of memory on a GPU is a multiple of this number.
BYTES = 512


class SimulatedGPU(TorchDispatchMode):
    """Context in which ``cuda`` is a device without numbers.

    The process must have :func:`library` in ``LD_PRELOAD``, and make its models and tensors within
    the context. What the host reads from the GPU are ones.

    Attributes:
        calls: Operators that would start a kernel, by name.
        waits: Places at which the host would wait for numbers of the GPU.
        copies: Places that copy something to the GPU.
        planes: Places of convolutions and batch norms, or of their gradients, that get features
            channel by channel. A GPU is slower with these than with channels-last ones.
        held: Bytes of the tensors on the GPU; the workspace of kernels is not in it.
        peak: The most bytes since the last reset.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.planes: Counter[str] = Counter()
        self.held = self.peak = 0
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._storages: dict[int, int] = {}
        self._patches = ExitStack()
        self._reading: str | None = None

    def __enter__(self):
        ctypes.CDLL(str(library())).register_guard()
        for target, name, value in _replacements():
            self._patches.enter_context(mock.patch.object(target, name, value))
        self._library = torch.library.Library('aten', 'IMPL')
        # It has no kernel but that for GPUs.
        self._library.impl('batch_norm_backward_reduce', _sums_of_channels, 'Meta')
        if torch.version.cuda is None:
            # Without a kernel of its own, torch would put it together of others.
            self._library.impl('silu_backward', lambda *args: None, 'CUDA')
        # Fake parameters can't take the place of real ones in the same object.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        torch.autograd.set_multithreading_enabled(False)
        return super().__enter__()

    def __exit__(self, *args):
        super().__exit__(*args)
        self._patches.close()

    def reset(self) -> None:
        """Count anew, from what is held now."""
        for counter in (self.calls, self.waits, self.copies, self.planes):
            counter.clear()
        self.peak = self.held

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, device = func.overloadpacket.__name__, kwargs.get('device')
        from_gpu = any(map(_on_gpu, tree_leaves((args, kwargs))))
        to = None if device is None else torch.device(device).type
        if not from_gpu and to != 'cuda':
            if kwargs.get('pin_memory'):
                kwargs = {**kwargs, 'pin_memory': False}
            return func(*args, **kwargs)
        if from_gpu and name not in NO_CALLS | {READ}:
            self.calls[name] += 1
            self._reading = None

        if name.removesuffix('_backward') in OF_FEATURES and any(map(_by_planes, args[:2])):
            self.planes[_place()] += 1

        if name == READ:
            # A list of numbers is one transfer, but asks for each of them here.
            place = _place()
            self.waits[place] += place != self._reading
            self._reading = place
            return torch.ones((), dtype=args[0].dtype).item()
        if from_gpu and to == 'cpu':
            shape = args[1] if name == 'new_empty' else args[0].shape
            if name == '_to_copy':
                self.waits[_place()] += 1
            return torch.ones(shape, dtype=kwargs.get('dtype') or args[0].dtype)
        if name == 'copy_' and not _on_gpu(args[0]):
            self.waits[_place()] += 1
            return args[0].fill_(1)
        if name in ('_to_copy', 'copy_') and not _on_gpu(args[-1]):
            self.copies[_place()] += 1
            if name == 'copy_':
                return args[0]
            func, kwargs = torch.ops.aten.empty_like.default, {**kwargs, 'pin_memory': False}
            kwargs.pop('non_blocking', None)
        with self._fake:
            out = func(*args, **kwargs)
        for tensor in filter(_on_gpu, tree_leaves(out)):
            self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = size = -(-storage.nbytes() // BYTES) * BYTES
            self.held += size
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.held -= self._storages.pop(key)


def library() -> Path:
    """Path of the library that tells torch of a GPU, which is compiled once.

    torch asks while it is imported. So a process must have it in ``LD_PRELOAD``.

    Raises:
        RuntimeError: It can't be compiled.
    """
    folder = Path(torch.__file__).parent / 'lib'
    state = hashlib.sha256(SOURCE.read_bytes() + f'{torch.__version__} {folder}'.encode())
    made = cache_folder() / f'simulated_gpu_{state.hexdigest()[:16]}.so'
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=made.parent) as work:
            target = Path(work) / 'it.so'
            command = ['c++', '-std=c++20', '-O1', '-shared', '-fPIC', SOURCE, '-o', target]
            command += [f'-I{folder.parent}/include', f'-L{folder}', f'-Wl,-rpath,{folder}']
            command += ['-lc10', '-ltorch_cpu']
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f'the simulated GPU cannot be compiled: {done.stderr[-2000:]}')
            target.rename(made)
    return made


def _replacements() -> list[tuple]:
    """What asks the driver, or computes with numbers, and what to put there."""

    class Event:
        def record(self, stream=None) -> None:
            pass

        synchronize = record

    values = dict(
        is_available=True, device_count=1, get_device_name='simulated', max_memory_allocated=0,
        _lazy_init=None, reset_peak_memory_stats=None, manual_seed_all=None,
    )  # fmt: skip

    def answer(value):
        return lambda *args, **kwargs: value

    empty_like = torch.empty_like
    foreach = 'torch.nn.utils.clip_grad'
    return [
        *((torch.cuda, name, answer(value)) for name, value in values.items()),
        (torch.cuda, 'Event', Event),
        (torch.cuda.amp.common, 'amp_definitely_not_available', lambda: False),
        (mmengine.device.utils, 'DEVICE', 'cuda'),
        (Tensor, 'pin_memory', lambda self, *args: self),
        (FakeTensor, '__deepcopy__', _copied),
        (torch, 'empty_like', lambda *args, pin_memory=False, **kw: empty_like(*args, **kw)),
        (F, 'scaled_dot_product_attention', _attention),
        # Fake gradients are of another class than those for which torch has one kernel.
        (sys.modules[foreach], '_has_foreach_support', lambda tensors, device: True),
    ]


@torch.no_grad()
def _copied(tensor: FakeTensor, memo: dict) -> Tensor:
    """As torch copies a real one: its copy of a fake parameter seems to have two memories."""
    copied = tensor.clone()
    if isinstance(tensor, torch.nn.Parameter):
        copied = torch.nn.Parameter(copied, tensor.requires_grad)
    return memo.setdefault(id(tensor), copied)


def _sums_of_channels(grad, x, mean, *_) -> tuple:
    return tuple(map(torch.empty_like, [mean] * 4))


def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None):
    """The kernel for attention that a GPU takes where there is a mask."""
    tensors = [query, key, value]
    if attn_mask is not None:
        shape = (*query.shape[:3], key.shape[2])
        tensors.append(attn_mask.to(query.dtype).expand(shape))
    if torch.is_autocast_enabled('cuda'):
        tensors = [each.to(torch.get_autocast_dtype('cuda')) for each in tensors]
    mask = tensors[3] if len(tensors) == 4 else None
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        *tensors[:3], mask, True, dropout_p, is_causal, scale=scale
    )[0]


def _on_gpu(value) -> bool:
    return isinstance(value, FakeTensor) and value.device.type == 'cuda'


def _by_planes(features) -> bool:
    """Whether features (B, C, H, W), or gradients of such, lie in memory channel by channel."""
    spatial = isinstance(features, Tensor) and features.dim() == 4
    return spatial and features.shape[1:].count(1) < 2 and features.stride(1) != 1


def _place() -> str:
    """File and line of the code that is being run, the last one that isn't torch's."""
    frame = inspect.currentframe()
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(tuple(PACKAGES)):
            return f'{Path(path).name}:{frame.f_lineno}'
        frame = frame.f_back
    return 'backward pass'
