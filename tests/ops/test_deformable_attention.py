"""The function in its forms, PyTorch's own operators and compiled, on every device there is."""

import contextlib
import warnings

from deim_mmdet.ops import SAMPLING_METHODS, compiled, deformable_attention, library, pure_pytorch
from deim_mmdet.ops.deformable_attention import _warn_of_pure_form

import numpy as np
import pytest
import torch
from attention_cases import LEVELS, away_from_kinks, random_inputs, slow_deformable_attention
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

ACCELERATORS = {'cuda': torch.cuda, 'mps': torch.backends.mps}
DEVICES = ['cpu', *(name for name, module in ACCELERATORS.items() if module.is_available())]


class Form:
    """One form of the function, ``'pytorch'`` or ``'compiled'``, on a device."""

    def __init__(self, name, device='cpu'):
        self.device = device
        self.scope = pure_pytorch if name == 'pytorch' else contextlib.nullcontext

    def __call__(self, value, shapes, locations, weights, num_points, method='default'):
        tensors = (value, locations, weights)
        if self.device == 'mps' and any(tensor.dtype == torch.float64 for tensor in tensors):
            pytest.skip('MPS has no float64')
        tensors = [tensor.to(self.device) for tensor in tensors]
        with self.scope():
            out = deformable_attention(tensors[0], shapes, *tensors[1:], num_points, method)
        return out.cpu()


def skip_without(device):
    if device not in compiled.DEVICES:
        pytest.skip(f'no compiled operators for {device}: {compiled.MISSING or "built without it"}')


@pytest.fixture(params=DEVICES)
def compiled_form(request):
    skip_without(request.param)
    return Form('compiled', request.param)


@pytest.fixture(
    params=[(name, device) for device in DEVICES for name in ('pytorch', 'compiled')],
    ids=' on '.join,
)
def form(request):
    name, device = request.param
    if name == 'compiled':
        skip_without(device)
    return Form(name, device)


class OperatorNames(TorchDispatchMode):
    """Records what is called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function._schema.name)
        return function(*args, **(kwargs or {}))


def operator_names(function):
    with OperatorNames() as record:
        function()
    return record.names


@pytest.mark.parametrize('method', SAMPLING_METHODS)
@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('channels', [1, 16, 35, 48])
@pytest.mark.parametrize(('shapes', 'num_points'), LEVELS)
def test_equals_slow_sampling(form, batch, channels, shapes, num_points, method):
    value, locations, weights = random_inputs(batch, 2, channels, shapes, num_points)
    out = form(value, shapes, locations, weights, num_points, method)
    expected = slow_deformable_attention(
        value.numpy(), shapes, locations.numpy(), weights.numpy(), num_points, method
    )
    np.testing.assert_allclose(out, expected, atol=1e-10)


@pytest.mark.parametrize('channels', [2, 5])
def test_gradients_equal_finite_differences(form, channels):
    shapes, num_points = [(3, 4), (1, 1)], [2, 1]
    value, locations, weights = random_inputs(2, 2, channels, shapes, num_points, queries=2)
    inputs = [t.requires_grad_() for t in (value, away_from_kinks(locations), weights)]
    assert torch.autograd.gradcheck(
        lambda value, *others: form(value, shapes, *others, num_points), inputs, nondet_tol=1e-12
    )


def test_gradients_of_nearest_samples(form):
    """Of value and weights as finite differences have them; locations are outside of the graph."""
    shapes, num_points = [(3, 4), (1, 1)], [2, 1]
    value, locations, weights = random_inputs(1, 2, 2, shapes, num_points, queries=2)
    locations.requires_grad_()
    inputs = [value.requires_grad_(), weights.requires_grad_()]
    assert torch.autograd.gradcheck(
        lambda value, weights: form(value, shapes, locations, weights, num_points, 'discrete'),
        inputs,
        nondet_tol=1e-12,
    )
    out = form(value, shapes, locations, weights, num_points, 'discrete')
    assert torch.autograd.grad(out.sum(), locations, allow_unused=True) == (None,)


def test_gradients_equal_those_of_pytorch(compiled_form):
    """With levels, points and channels as models have them."""
    shapes, num_points = [(20, 12), (10, 6), (5, 3)], [3, 6, 3]
    inputs = [t.float().requires_grad_() for t in random_inputs(2, 8, 32, shapes, num_points, 40)]
    grad_out = torch.randn(2, 40, 256)
    found, expected = (
        torch.autograd.grad(form(inputs[0], shapes, *inputs[1:], num_points), inputs, grad_out)
        for form in (compiled_form, Form('pytorch'))
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize('locations_type', [torch.float32, torch.float64])
@pytest.mark.parametrize(
    'value_type', [torch.float32, torch.float64, torch.float16, torch.bfloat16]
)
def test_types(form, value_type, locations_type):
    shapes, num_points = LEVELS[0]
    value, locations, weights = random_inputs(2, 2, 16, shapes, num_points)
    value, locations = value.to(value_type), away_from_kinks(locations).to(locations_type)
    out = form(value, shapes, locations, weights.to(locations_type), num_points)
    assert out.dtype == torch.promote_types(value_type, locations_type)
    expected = form(value.double(), shapes, locations.double(), weights, num_points)
    torch.testing.assert_close(out, expected.to(out.dtype), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_throughout(compiled_form, dtype):
    shapes, num_points = LEVELS[0]
    inputs = [t.to(dtype) for t in random_inputs(2, 2, 16, shapes, num_points)]
    out = compiled_form(inputs[0], shapes, *inputs[1:], num_points)
    assert out.dtype == dtype
    wide = [t.double() for t in inputs]
    expected = Form('pytorch')(wide[0], shapes, *wide[1:], num_points)
    # Rounded once, at the end.
    torch.testing.assert_close(out, expected.to(dtype), atol=1e-5, rtol=torch.finfo(dtype).eps)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_gradients_have_the_types_of_their_tensors(compiled_form, dtype):
    shapes, num_points = LEVELS[0]
    value, locations, weights = random_inputs(2, 2, 16, shapes, num_points)
    inputs = [value.to(dtype), away_from_kinks(locations).float(), weights.float()]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    found, expected = (
        torch.autograd.grad(form(inputs[0], shapes, *inputs[1:], num_points).sum(), inputs)
        for form in (compiled_form, Form('pytorch'))
    )
    for ours, theirs, tensor in zip(found, expected, inputs, strict=True):
        assert ours.dtype == tensor.dtype
        tolerance = torch.finfo(tensor.dtype).eps * 4
        torch.testing.assert_close(ours, theirs, atol=tolerance * 10, rtol=tolerance)


def test_autocast_keeps_locations_in_full_precision(form):
    shapes, num_points = [(64, 64)], [4]
    value, locations, weights = (t.float() for t in random_inputs(1, 2, 16, shapes, num_points))
    value = value.bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        out = form(value, shapes, locations, weights, num_points)
    assert out.dtype == torch.float32
    expected = form(value.float(), shapes, locations, weights, num_points)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_locations_that_are_nowhere(compiled_form):
    """Far outside there is nothing; NaN shows in the output and gradients of its query alone."""
    shapes, num_points = [(3, 4)], [2]
    value, locations, weights = random_inputs(1, 1, 8, shapes, num_points, queries=6)
    locations[:] = 0.4
    for query, place in enumerate((1e30, -1e30, torch.inf, -torch.inf, torch.nan)):
        locations[:, query] = place
    inputs = [t.float().requires_grad_() for t in (value, locations, weights)]
    out = compiled_form(inputs[0], shapes, *inputs[1:], num_points)
    assert (out[:, :4] == 0).all()
    assert out[:, 4].isnan().all()
    assert out[:, 5].isfinite().all()
    grads = torch.autograd.grad(out.sum(), inputs)
    assert grads[0].isnan().any()
    for grad in grads[1:]:
        assert (grad[:, :4] == 0).all()
        assert grad[:, 4].isnan().all()
        assert grad[:, 5].isfinite().all()


def test_nearest_samples_of_nan_are_nan(form):
    shapes, num_points = [(3, 4)], [2]
    value, locations, weights = random_inputs(1, 1, 8, shapes, num_points, queries=3)
    locations[:, 1, :, 0, 0] = torch.nan
    out = form(value, shapes, locations, weights, num_points, 'discrete')
    assert out.isnan().all(-1).tolist() == [[False, True, False]]


def test_tensors_in_any_order_of_memory(compiled_form):
    shapes, num_points = LEVELS[0]
    inputs = random_inputs(2, 3, 16, shapes, num_points)
    shuffled = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in inputs]
    assert not any(tensor.is_contiguous() for tensor in shuffled)
    out = compiled_form(inputs[0], shapes, *inputs[1:], num_points)
    assert out.equal(compiled_form(shuffled[0], shapes, *shuffled[1:], num_points))


@pytest.mark.parametrize(('batch', 'queries'), [(0, 5), (2, 0)])
def test_nothing_to_do(compiled_form, batch, queries):
    shapes, num_points = LEVELS[0]
    inputs = random_inputs(1, 2, 16, shapes, num_points)
    inputs = [inputs[0].expand(batch, -1, -1, -1)] + [
        t[:1, :1].expand(batch, queries, *t.shape[2:]) for t in inputs[1:]
    ]
    inputs = [t.contiguous().requires_grad_() for t in inputs]
    out = compiled_form(inputs[0], shapes, *inputs[1:], num_points)
    assert out.shape == (batch, queries, 32)
    assert all((grad == 0).all() for grad in torch.autograd.grad(out.sum(), inputs))


def test_number_of_threads_changes_no_bit():
    skip_without('cpu')
    shapes, num_points = [(20, 20), (10, 10)], [6, 6]
    inputs = [t.float().requires_grad_() for t in random_inputs(1, 3, 16, shapes, num_points, 800)]
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = deformable_attention(inputs[0], shapes, *inputs[1:], num_points)
            results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    finally:
        torch.set_num_threads(1)
    for result in results[1:]:
        assert all(map(torch.equal, results[0], result))


@pytest.mark.parametrize('num_points', [[2, 2], [3], [1, 1, 1]])
def test_numbers_that_disagree_are_refused(num_points):
    value, locations, weights = random_inputs(1, 1, 4, [(3, 3), (2, 2)], [2, 1])
    with pytest.raises(ValueError, match='num_points'):
        deformable_attention(value, [(3, 3), (2, 2)], locations, weights, num_points)
    with pytest.raises(ValueError, match='tokens'):
        deformable_attention(value, [(3, 3), (2, 1)], locations, weights, [2, 1])


def test_unknown_method_is_refused():
    inputs = random_inputs(1, 1, 4, [(3, 3)], [2])
    with pytest.raises(ValueError, match=r"method must be one of .*, got 'bicubic'"):
        deformable_attention(inputs[0], [(3, 3)], *inputs[1:], [2], 'bicubic')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda v, x, w: (v, x.float(), w), 'must be Double'),
        (lambda v, x, w: (v, x, w[:, 1:]), 'shapes disagree'),
        (lambda v, x, w: (v.int(), x, w), 'no kernel for a value of Int'),
        (
            lambda v, x, w: (v[:, 1:], x, w),
            r'points are \(8, 2\), but the levels have \(9, 2\)',
        ),
    ],
)
def test_operator_checks_what_kernels_rely_on(change, message):
    skip_without('cpu')
    inputs = random_inputs(2, 1, 4, [(3, 3)], [2])
    with pytest.raises(RuntimeError, match=message):
        torch.ops.deim_mmdet.deformable_attention(*change(*inputs), [3, 3], [2], False)


@pytest.mark.parametrize('nearest', [False, True])
def test_operators_keep_the_rules_of_torch(nearest):
    """Schema, shapes without data, autograd and tracing, as torch checks them."""
    skip_without('cpu')
    shapes, num_points = [(3, 4), (1, 1)], [2, 1]
    inputs = random_inputs(2, 2, 3, shapes, num_points, queries=2)
    settings = ([3, 4, 1, 1], num_points, nearest)
    operators = torch.ops.deim_mmdet
    torch.library.opcheck(
        operators.deformable_attention.default,
        (*(tensor.clone().requires_grad_() for tensor in inputs), *settings),
    )
    torch.library.opcheck(
        operators.deformable_attention_backward.default,
        (torch.randn(2, 2, 6, dtype=torch.float64), *inputs, *settings),
    )


class Attention(torch.nn.Module):
    def forward(self, value, locations, weights):
        side = 2 * locations.shape[1]
        return deformable_attention(value * 2, [(side, 4)], locations, weights, [3]) + 1


def attention_inputs(queries):
    return random_inputs(1, 2, 16, [(2 * queries, 4)], [3], queries)


def test_torch_compile_keeps_the_operator_and_its_gradients():
    """In one graph, for sizes that vary, too."""
    skip_without('cpu')
    module = Attention()
    fast = torch.compile(module, fullgraph=True, dynamic=True, backend='aot_eager')
    for queries in (3, 5, 8):
        inputs = [tensor.requires_grad_() for tensor in attention_inputs(queries)]
        out, expected = fast(*inputs), module(*inputs)
        torch.testing.assert_close(out, expected)
        grads = torch.autograd.grad(out.sum(), inputs)
        torch.testing.assert_close(grads, torch.autograd.grad(expected.sum(), inputs))


def test_torch_export_keeps_the_operator():
    skip_without('cpu')
    queries = torch.export.Dim('queries', min=2, max=64)
    program = torch.export.export(
        Attention(),
        attention_inputs(4),
        dynamic_shapes=({1: 8 * queries}, {1: queries}, {1: queries}),
    )
    assert 'deim_mmdet.deformable_attention' in str(program.graph)
    for size in (4, 7):
        inputs = attention_inputs(size)
        torch.testing.assert_close(program.module()(*inputs), Attention()(*inputs))


def test_onnx_export_and_pure_scope_take_operators_of_pytorch(monkeypatch):
    skip_without('cpu')
    inputs = random_inputs(1, 2, 4, *LEVELS[1])

    def call():
        return deformable_attention(inputs[0], LEVELS[1][0], *inputs[1:], LEVELS[1][1])

    ours = {'deim_mmdet::deformable_attention'}
    assert operator_names(call) == ours
    with pure_pytorch():
        assert operator_names(call).isdisjoint(ours)
    assert operator_names(call) == ours
    monkeypatch.setattr(torch.jit, 'is_tracing', lambda: True)
    assert operator_names(call) == ours
    monkeypatch.setattr(torch.onnx, 'is_in_onnx_export', lambda: True)
    assert operator_names(call).isdisjoint(ours)


def grid_sample_has_second_derivatives():
    """Whether this version of torch has them; those up to 2.11 don't."""
    image, grid = torch.rand(1, 1, 3, 3, requires_grad=True), torch.rand(1, 1, 1, 2)
    out = torch.nn.functional.grid_sample(image, grid, align_corners=False)
    (grad,) = torch.autograd.grad(out.square().sum(), image, create_graph=True)
    try:
        torch.autograd.grad(grad.square().sum(), image)
    except RuntimeError:
        return False
    return True


def test_second_derivatives_are_refused():
    skip_without('cpu')
    value, locations, weights = random_inputs(1, 1, 4, [(3, 3)], [2])
    value.requires_grad_()
    weights.requires_grad_()

    def penalty():
        out = deformable_attention(value, [(3, 3)], locations, weights, [2])
        (grad,) = torch.autograd.grad(out.square().sum(), value, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), weights)

    with pytest.raises(NotImplementedError, match=r'no second derivative.*pure_pytorch'):
        penalty()
    with pure_pytorch():
        if grid_sample_has_second_derivatives():
            assert penalty()[0].isfinite().all()
        else:
            with pytest.raises(RuntimeError, match='grid_sampler_2d_backward'):
                penalty()


def test_forward_mode_is_refused():
    """Instead of a result without a derivative."""
    skip_without('cpu')
    inputs = random_inputs(1, 1, 4, [(3, 3)], [2])
    with forward_ad.dual_level():
        value = forward_ad.make_dual(inputs[0], torch.ones_like(inputs[0]))
        with pytest.raises(RuntimeError, match='not implemented'):
            deformable_attention(value, [(3, 3)], *inputs[1:], [2])


def test_what_no_kernel_takes_runs_in_pytorch_and_says_so_once():
    skip_without('cpu')
    _warn_of_pure_form.cache_clear()
    shapes, num_points = [(2, 2)] * 9, [1] * 9
    inputs = random_inputs(1, 1, 4, shapes, num_points)
    with pytest.warns(UserWarning, match=r'slower.*at most 8 levels.*docs/operators.md'):
        out = deformable_attention(inputs[0], shapes, *inputs[1:], num_points)
    expected = slow_deformable_attention(
        inputs[0].numpy(), shapes, inputs[1].numpy(), inputs[2].numpy(), num_points
    )
    np.testing.assert_allclose(out, expected, atol=1e-10)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        deformable_attention(inputs[0], shapes, *inputs[1:], num_points)


def test_works_without_compiled_operators(monkeypatch):
    _warn_of_pure_form.cache_clear()
    monkeypatch.setattr(compiled, 'MISSING', 'they were not compiled')
    value, locations, weights = random_inputs(1, 2, 4, *LEVELS[1])
    with pytest.warns(UserWarning, match='slower.*they were not compiled'):
        out = deformable_attention(value, LEVELS[1][0], locations, weights, LEVELS[1][1])
    torch.testing.assert_close(
        out, Form('pytorch')(value, LEVELS[1][0], locations, weights, LEVELS[1][1])
    )


def test_library_that_does_not_fit_is_not_loaded(tmp_path):
    """It could crash the process: neither one for another torch, nor one from other sources."""
    path = tmp_path / '_C.so'
    assert 'not compiled' in library.load(path)
    tag = library.build_tag(torch.__version__)
    assert tag != library.build_tag('2.6.0')
    path.write_bytes(library.MARK + library.build_tag('2.6.0').encode())
    assert 'another torch' in library.load(path)
    path.write_bytes(library.MARK + tag.encode())
    assert 'does not load' in library.load(path)


def test_library_in_use_was_made_of_these_sources(monkeypatch, tmp_path):
    skip_without('cpu')
    assert library.load() == ''
    (tmp_path / 'core.h').write_text('// edited')
    monkeypatch.setattr(library, 'SOURCES', tmp_path)
    assert 'other sources' in library.load()
