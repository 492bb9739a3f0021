"""The CUDA kernels without a GPU: compiled by nvcc, and run on the CPU as they are.

On a GPU they are tested by test_deformable_attention.py.
"""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

from deim_mmdet.ops import deformable_attention, pure_pytorch
from deim_mmdet.ops.library import SOURCES

import numpy as np
import pytest
import torch
from attention_cases import LEVELS, away_from_kinks, random_inputs

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ARCHITECTURES = (75, 80, 86, 89, 90)
# As ValueType in core.h, with the type of locations, weights, output and gradients.
TYPES = {
    torch.float32: (0, torch.float32),
    torch.float64: (1, torch.float64),
    torch.float16: (2, torch.float32),
    torch.bfloat16: (3, torch.float32),
}


@pytest.fixture(scope='module')
def kernels(tmp_path_factory):
    """The kernels' source, compiled by a C++ compiler; see cuda_on_host/cuda_runtime_api.h."""
    compiler = shutil.which('g++')
    if compiler is None:
        pytest.skip('there is no g++')
    library = tmp_path_factory.mktemp('kernels') / 'kernels.so'
    folder = HERE / 'cuda_on_host'
    command = (compiler, '-std=c++17', '-O1', '-shared', '-fPIC', '-Wall', '-Wno-unknown-pragmas')
    includes = (f'-I{folder}', f'-I{SOURCES}')
    sources = (str(SOURCES / 'cuda_kernels.cu'), str(folder / 'entry.cpp'))
    done = subprocess.run(
        [*command, '-Werror', *includes, '-x', 'c++', *sources, '-o', str(library)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = ctypes.CDLL(str(library))
    loaded.atomic_additions.restype = ctypes.c_longlong
    return loaded


def run(function, shapes, num_points, method, flags, *tensors):
    """Call a launch function; returns its error code."""
    value, locations = tensors[:2]
    batch, _, heads, channels = value.shape
    levels = [side for (h, w), n in zip(shapes, num_points, strict=True) for side in (h, w, n)]
    sizes = (batch, locations.shape[1], heads, channels, len(shapes), method == 'discrete', *levels)
    return function(
        (ctypes.c_int * len(sizes))(*sizes),
        TYPES[value.dtype][0],
        *map(int, flags),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors),
    )


def between_nans(tensor):
    """A copy with NaN before and behind it, so that a read outside of it shows in the result."""
    size = tensor.numel()
    memory = torch.full((size + 128,), torch.nan, dtype=tensor.dtype)
    return memory[64 : 64 + size].view(tensor.shape).copy_(tensor)


def kernel_results(
    kernels, inputs, shapes, num_points, method, grad_out, *, backwards=False, adds_vectors=False
):
    """Output and gradients of value, locations and weights.

    ``backwards``: threads take turns from the last to the first; ``adds_vectors``: as on a GPU that
    adds four floats at once.
    """
    inputs = [between_nans(tensor) for tensor in inputs]
    value, locations, weights = inputs
    computed = TYPES[value.dtype][1]
    out = torch.full(grad_out.shape, torch.nan, dtype=computed)
    settings = (shapes, num_points, method)
    assert run(kernels.run_forward, *settings, [backwards], *inputs, out) == 0
    grads = [
        torch.zeros(value.shape, dtype=computed),
        torch.full_like(locations, torch.nan),
        torch.full_like(weights, torch.nan),
    ]
    tensors = [*inputs, between_nans(grad_out.to(computed)), *grads]
    assert run(kernels.run_backward, *settings, [backwards, adds_vectors], *tensors) == 0
    return [out, *grads]


def pytorch_results(inputs, shapes, num_points, method, grad_out):
    inputs = [tensor.detach().double().requires_grad_() for tensor in inputs]
    with pure_pytorch():
        out = deformable_attention(inputs[0], shapes, *inputs[1:], num_points, method)
    grads = torch.autograd.grad(out, inputs, grad_out, allow_unused=True)
    return [out.detach(), *grads]


@pytest.mark.parametrize('method', ['default', 'discrete'])
@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('channels', [1, 16, 32, 48])
@pytest.mark.parametrize(('shapes', 'num_points'), LEVELS)
def test_equal_pytorch(kernels, shapes, num_points, channels, batch, method):
    inputs = random_inputs(batch, 2, channels, shapes, num_points, queries=3)
    grad_out = torch.randn(batch, 3, 2 * channels, dtype=torch.float64)
    expected = pytorch_results(inputs, shapes, num_points, method, grad_out)
    # In both orders of the threads: without a barrier where one is needed they differ.
    for backwards in (False, True):
        found = kernel_results(
            kernels, inputs, shapes, num_points, method, grad_out, backwards=backwards
        )
        for name, ours, theirs in zip(
            ('output', 'value', 'locations', 'weights'), found, expected, strict=True
        ):
            if theirs is None:
                assert ours.isnan().all(), 'the nearest method writes no gradient of locations'
            else:
                torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0, msg=name)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('adds_vectors', [False, True])
@pytest.mark.parametrize(
    ('channels', 'levels'), [(6, LEVELS[0]), (16, LEVELS[3]), (32, LEVELS[0]), (128, LEVELS[1])]
)
def test_types(kernels, dtype, channels, levels, adds_vectors):
    """With a group of 4, 8, 16 or 32 lanes a row, and more points than are located at once."""
    shapes, num_points = levels
    value, locations, weights = random_inputs(2, 2, channels, shapes, num_points)
    # Beside the pixel grid, where rounding to float32 doesn't move a point into another cell.
    locations = away_from_kinks(locations).float()
    inputs = value.to(dtype), locations, weights.float()
    grad_out = torch.randn(2, 5, 2 * channels)
    found = kernel_results(
        kernels, inputs, shapes, num_points, 'default', grad_out, adds_vectors=adds_vectors
    )
    expected = pytorch_results(inputs, shapes, num_points, 'default', grad_out.double())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs.float(), atol=2e-5, rtol=1e-4)


def test_gradients_equal_finite_differences(kernels):
    shapes, num_points = [(3, 4), (1, 1)], [2, 1]
    value, locations, weights = random_inputs(1, 2, 3, shapes, num_points, queries=2)
    inputs = value, away_from_kinks(locations), weights
    grad_out = torch.randn(1, 2, 6, dtype=torch.float64)
    arguments = (shapes, num_points, 'default', grad_out)
    grads = kernel_results(kernels, inputs, *arguments)[1:]
    step = 1e-6
    for tensor, grad in zip(inputs, grads, strict=True):
        flat = tensor.view(-1)
        for i in range(0, len(flat), 5):
            ends = []
            for change in (step, -2 * step):
                flat[i] += change
                found = kernel_results(kernels, inputs, *arguments)[0]
                ends.append((found * grad_out).sum().item())
            flat[i] += step
            slope = (ends[0] - ends[1]) / (2 * step)
            assert grad.view(-1)[i].item() == pytest.approx(slope, abs=1e-7)


def test_value_that_is_not_aligned(kernels):
    """A view into other memory, whose channels can't be read 16 bytes at once."""
    shapes, num_points = LEVELS[0]
    value, locations, weights = (t.float() for t in random_inputs(1, 2, 16, shapes, num_points))
    shifted = torch.empty(value.numel() + 1)[1:].view(value.shape).copy_(value)
    assert value.data_ptr() % 16 == 0
    assert shifted.data_ptr() % 16 != 0
    outputs = []
    for tensor in (value, shifted):
        out = torch.empty(1, 5, 32)
        assert (
            run(
                kernels.run_forward, shapes, num_points, 'default', [False],
                tensor, locations, weights, out,
            ) == 0
        )  # fmt: skip
        outputs.append(out)
    torch.testing.assert_close(*outputs)


def test_points_of_one_cell_are_added_at_once(kernels):
    """Of neighbouring points: all points of a query in one cell need its four corners once."""
    shapes, num_points, channels = [(4, 5)], [12], 16
    value, locations, weights = random_inputs(1, 2, channels, shapes, num_points)
    locations = 0.45 + 0.01 * locations.clamp(0, 1)
    grad_out = torch.randn(1, 5, 2 * channels, dtype=torch.float64)
    kernels.atomic_additions()
    kernel_results(kernels, (value, locations, weights), shapes, num_points, 'default', grad_out)
    rows = 5 * 2
    assert kernels.atomic_additions() == rows * 4 * channels


def test_more_channels_than_threads_are_refused(kernels):
    inputs = random_inputs(1, 1, 129, [(2, 2)], [1])
    out = torch.empty(1, 5, 129, dtype=torch.float64)
    assert run(kernels.run_forward, [(2, 2)], [1], 'default', [False], *inputs, out) != 0


@pytest.fixture(scope='module')
def nvcc():
    found = shutil.which('nvcc')
    if found is None:
        pytest.skip('there is no nvcc')
    return found


def test_compiles_for_all_architectures_without_spills(nvcc, tmp_path):
    known = subprocess.run([nvcc, '--list-gpu-arch'], capture_output=True, text=True, check=True)
    targets = [arch for arch in ARCHITECTURES if f'compute_{arch}' in known.stdout.split()]
    assert len(targets) >= 3, known.stdout
    codes = [f'-gencode=arch=compute_{arch},code=sm_{arch}' for arch in targets]
    done = subprocess.run(
        [
            nvcc, '-std=c++17', '-O3', *codes, '--resource-usage',
            '-c', str(SOURCES / 'cuda_kernels.cu'), '-o', str(tmp_path / 'kernels.o'),
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = done.stdout + done.stderr
    spills = np.array(re.findall(r'(\d+) bytes spill stores, (\d+) bytes spill loads', text), int)
    kernels = re.findall(r"entry function '(\w+)' for.*?Used (\d+) registers", text, re.DOTALL)
    assert len(spills) == len(kernels) == 15 * len(targets)
    assert spills.sum() == 0
    # A multiprocessor's 65536 are shared by eight blocks of 128 threads, or four of the backward
    # kernel.
    for name, registers in kernels:
        assert int(registers) <= (128 if 'backward' in name else 64), name


def assembly(nvcc, tmp_path, architecture):
    """The kernels by name, in the assembler of all GPUs from an architecture on."""
    target = tmp_path / 'kernels.ptx'
    source = str(SOURCES / 'cuda_kernels.cu')
    architecture = f'-arch=compute_{architecture}'
    subprocess.run(
        [nvcc, '-std=c++17', '-O3', architecture, '-ptx', source, '-o', str(target)], check=True
    )
    return dict(entry.split('(', 1) for entry in target.read_text().split('.entry ')[1:])


def test_values_are_read_16_bytes_at_once(nvcc, tmp_path):
    entries = assembly(nvcc, tmp_path, 80).items()
    vectorised = [body for name, body in entries if re.search(r'forward_kernel.*[248]EE', name)]
    assert len(vectorised) == 4
    for body in vectorised:
        assert len(re.findall(r'ld\.global\.nc\.(?:v4\.[uf]32|v2\.f64)', body)) >= 4


def test_four_floats_are_added_at_once_where_the_gpu_can(nvcc, tmp_path):
    for architecture, vectors in ((80, False), (90, True)):
        entries = assembly(nvcc, tmp_path, architecture).items()
        kernels = [body for name, body in entries if re.search(r'backward_kernel.*Li4EE', name)]
        assert len(kernels) == 3
        for body in kernels:
            assert bool(re.search(r'\b(?:atom|red)\.global\.\S*v4\.f32', body)) == vectors
