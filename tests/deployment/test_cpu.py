import copy

from deim_mmdet.deployment.cpu import onednn_linear, optimize_for_cpu
from deim_mmdet.engine import DEIMRunner
from deim_mmdet.models.layers.attention import SelfAttention, additive_mask

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason='this torch has no oneDNN'
)


def operators(function) -> set[str]:
    with torch.profiler.profile() as profiler:
        function()
    return {event.key for event in profiler.key_averages()}


def is_onednn(function) -> bool:
    return 'mkldnn::_linear_pointwise' in operators(function)


def large() -> tuple[torch.Tensor, ...]:
    """Input (3, 700, 40), weight (60, 40) and bias (60,): five million multiplications."""
    torch.manual_seed(0)
    return torch.randn(3, 700, 40), torch.randn(60, 40), torch.randn(60)


@onednn
@pytest.mark.parametrize('with_bias', [True, False])
@pytest.mark.parametrize('strided', [True, False])
def test_outputs_and_gradients_are_those_of_double_precision(with_bias, strided):
    x, weight, bias = large()
    if strided:
        x, weight = x.transpose(0, 1), weight.repeat(2, 1)[::2]
    given = [x, weight, bias] if with_bias else [x, weight]
    upstream = torch.randn(*x.shape[:-1], 60)

    def run(function, dtype):
        inputs = [tensor.to(dtype).requires_grad_() for tensor in given]
        output = function(*inputs)
        return output, *torch.autograd.grad(output, inputs, upstream.to(dtype))

    assert is_onednn(lambda: run(onednn_linear, torch.float32))
    for got, expected in zip(
        run(onednn_linear, torch.float32), run(F.linear, torch.float64), strict=True
    ):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=2e-4)


@onednn
def test_without_gradients_it_is_the_same_product():
    x, weight, bias = large()
    with torch.no_grad():
        assert is_onednn(lambda: onednn_linear(x, weight, bias))
        without = onednn_linear(x, weight, bias)
    assert torch.equal(without, onednn_linear(x, weight.requires_grad_(), bias))


@onednn
def test_gradients_are_the_same_bit_for_bit_each_time():
    x, weight, bias = (tensor.requires_grad_() for tensor in large())

    def gradients():
        return torch.autograd.grad(onednn_linear(x, weight, bias).square().sum(), (x, weight, bias))

    first = gradients()
    for _ in range(5):
        assert all(map(torch.equal, first, gradients()))


@onednn
def test_only_gradients_that_are_asked_for_are_computed():
    x, weight, bias = large()
    weight.requires_grad_()
    onednn_linear(x, weight, bias).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum((0, 1)).expand(60, 40), rtol=1e-4, atol=1e-3)
    assert x.grad is None
    assert bias.grad is None


@onednn
def test_output_can_be_changed_in_place():
    x, weight, bias = large()
    weight.requires_grad_()
    onednn_linear(x, weight, bias).relu_().sum().backward()
    expected = torch.autograd.grad(F.linear(x, weight, bias).relu().sum(), weight)[0]
    torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-3)


def test_small_double_and_disabled_products_are_torch_s():
    x, weight, bias = large()
    assert not is_onednn(lambda: onednn_linear(x[:1, :9], weight, bias))
    assert not is_onednn(lambda: onednn_linear(x.double(), weight.double(), bias.double()))
    with torch.backends.mkldnn.flags(enabled=False):
        assert not is_onednn(lambda: onednn_linear(x, weight, bias))


def test_autocast_is_obeyed():
    x, weight, bias = large()
    with torch.autocast('cpu', torch.bfloat16):
        assert onednn_linear(x, weight, bias).dtype == torch.bfloat16


def test_traces_and_compiled_code_hold_the_standard_operator():
    x, weight, bias = large()
    layer = optimize_for_cpu(nn.Linear(40, 60))
    layer.load_state_dict(dict(weight=weight, bias=bias))
    assert 'aten::linear' in str(torch.jit.trace(layer, x).inlined_graph)
    compiled = torch.compile(layer, backend='eager', fullgraph=True)
    assert not is_onednn(lambda: compiled(x))
    graph = torch.export.export(layer, (x,)).graph
    assert 'aten.linear.default' in {str(node.target) for node in graph.nodes}


@onednn
def test_layers_take_onednn_s_products_where_they_are_told_to():
    layer, attention = nn.Linear(128, 128), SelfAttention(128, 4)
    x = torch.randn(2, 300, 128)
    for module, inputs in ((layer, [x]), (attention, [x, x])):
        assert not is_onednn(lambda m=module, i=inputs: m(*i))
        optimized = copy.deepcopy(optimize_for_cpu(module))
        assert is_onednn(lambda m=optimized, i=inputs: m(*i))


@onednn
def test_runner_takes_onednn_s_products_on_a_cpu(tmp_path):
    model = nn.Sequential(nn.Linear(128, 128))
    DEIMRunner(model, str(tmp_path), default_scope='mmdet', experiment_name='optimized')
    assert is_onednn(lambda: model(torch.randn(600, 128)))


def test_layers_keep_parameters_names_and_sharing():
    linear = nn.Linear(4, 4)
    parts = dict(a=nn.Sequential(linear), b=SelfAttention(8, 2), c=nn.Conv2d(3, 2, 1), d=linear)
    model = nn.ModuleDict(parts)
    before = dict(model.named_parameters(remove_duplicate=False))
    optimized = optimize_for_cpu(model)
    assert optimized is model
    after = dict(optimized.named_parameters(remove_duplicate=False))
    assert list(after) == list(before)
    assert all(after[name] is parameter for name, parameter in before.items() if name != 'c.weight')
    assert optimized['d'] is optimized['a'][0]


def test_layers_keep_hooks_and_what_was_set_on_them():
    called = []
    model = nn.Sequential(nn.Linear(4, 4), SelfAttention(8, 2))
    model[0].register_forward_hook(lambda *_: called.append(True))
    prune.l1_unstructured(model[0], 'weight', 0.5)
    tokens = torch.randn(2, 4)
    expected = model[0](tokens)
    state = torch.get_rng_state()
    optimized = optimize_for_cpu(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(optimized[0](tokens), expected)
    assert len(called) == 2


@pytest.mark.parametrize('optimized', [True, False])
@pytest.mark.parametrize('masked', [True, False])
@pytest.mark.parametrize('tokens', [7, 300])
def test_self_attention_is_torch_s(optimized, masked, tokens):
    torch.manual_seed(0)
    ours, theirs = SelfAttention(64, 4), nn.MultiheadAttention(64, 4, batch_first=True)
    if optimized:
        ours = optimize_for_cpu(ours)
    nn.init.normal_(ours.in_proj_bias)
    nn.init.normal_(ours.out_proj.bias)
    theirs.load_state_dict(ours.state_dict())
    blocked = torch.rand(tokens, tokens) < 0.5 if masked else None
    if masked:
        blocked.fill_diagonal_(False)
    positioned, content = torch.randn(2, 2, tokens, 64)
    mask = additive_mask(blocked, content) if masked else None

    def run(attend, parameters):
        inputs = [positioned.clone().requires_grad_(), content.clone().requires_grad_()]
        output = attend(*inputs)
        gradients = torch.autograd.grad(output.square().sum(), [*inputs, *parameters])
        return output, *gradients

    got = run(lambda p, c: ours(p, c, mask), ours.parameters())
    expected = run(
        lambda p, c: theirs(p, p, c, attn_mask=blocked, need_weights=False)[0],
        theirs.parameters(),
    )
    for ours_, theirs_ in zip(got, expected, strict=True):
        torch.testing.assert_close(
            ours_, theirs_, rtol=1e-4, atol=1e-4 * theirs_.abs().max().item()
        )
