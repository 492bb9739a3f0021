"""Weights that are cast all at once, against autocast, which casts each by itself."""

import contextlib
import copy

from deim_mmdet.models.detectors import DEIMDetector
from deim_mmdet.models.layers.conv_norm import ConvNorm, freeze_norms
from deim_mmdet.models.layers.half_weights import HalfWeights

import pytest
import torch
from golden import CONFIGS, build_model
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from tiny_detectors import tiny_batch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.utils import parametrize, prune

# Frozen norms have L and R50; ViTs and shared heads have those of DEIMv2 and ECDet.
NAMES = [
    'dfine_n', 'dfine_l', 'rtdetrv2_r18', 'rtdetrv2_r50', 'deimv2_pico', 'deimv2_s', 'ecdet_s',
]  # fmt: skip


@contextlib.contextmanager
def lending(model, dtype, lend):
    device = next(model.parameters()).device.type
    lent = model._half_weights(dtype) if lend else contextlib.nullcontext()
    with torch.autocast(device, dtype), lent:
        yield


def step(model, dtype, lend):
    """Losses and gradients of a step, by name."""
    images, samples = tiny_batch([2, 3], size=64)
    images = images.to(next(model.parameters()).device)
    for sample in samples:
        sample.gt_instances.labels %= model.bbox_head.num_classes
    torch.manual_seed(0)
    model.zero_grad()
    with lending(model, dtype, lend):
        losses = model.loss(images, samples)
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return losses, gradients


def both_ways(name, dtype, device='cpu'):
    """Losses and gradients of a step by autocast alone, and with lent weights."""
    torch.manual_seed(0)
    model = build_model(name).train().to(device, memory_format=torch.channels_last)
    for norm in model.modules():
        if hasattr(norm, 'running_var'):
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(norm.running_mean, std=0.1)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    by_autocast = step(model, dtype, lend=False)
    model.load_state_dict(state)
    lent = step(model, dtype, lend=True)
    assert lent[1].keys() == by_autocast[1].keys()
    # Nothing is lent for longer.
    assert not any('weight' in vars(module) for module in model.modules())
    return by_autocast, lent


@pytest.mark.parametrize(
    ('name', 'dtype'),
    [*((name, torch.bfloat16) for name in NAMES), ('dfine_l', torch.float16)],
    ids=str,
)
def test_losses_and_gradients_are_those_of_autocast(name, dtype):
    (losses, gradients), (lent_losses, lent_gradients) = both_ways(name, dtype)
    for expected, found in ((losses, lent_losses), (gradients, lent_gradients)):
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=0, msg=key, equal_nan=True)
            assert found[key].dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('name', ['dfine_n', 'dfine_l', 'deimv2_pico'])
def test_a_gpu_computes_the_same(name, monkeypatch):
    """Equal up to rounding.

    Models aren't compared whose backbones add in any order in half precision. Such rounding changes
    gradients that are nothing but rounding, as those of a bias before a norm, by their own size.
    """
    monkeypatch.setattr(torch.backends.cudnn, 'deterministic', True)
    monkeypatch.setattr(DEIMDetector, 'lend_half_weights', lambda *_: contextlib.nullcontext())
    (losses, gradients), (lent_losses, lent_gradients) = both_ways(name, torch.bfloat16, 'cuda')
    torch.testing.assert_close(lent_losses, losses, rtol=1e-3, atol=1e-5)
    for key, gradient in gradients.items():
        assert lent_gradients[key].stride() == gradient.stride(), key
        error = (lent_gradients[key] - gradient).norm() / gradient.norm().clamp(min=1e-6)
        assert error < 0.2, key


def test_layers_have_their_parameters_again_after_an_error():
    model = build_model('dfine_n')
    conv, parameters = model.backbone.stem.stem1.conv, dict(model.named_parameters())

    def fail():
        with model._half_weights(torch.bfloat16):
            assert conv.weight.dtype == torch.bfloat16
            assert dict(model.named_parameters()).keys() == parameters.keys()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert conv.weight is parameters['backbone.stem.stem1.conv.weight']
    assert not any('weight' in vars(module) for module in model.modules())


@pytest.mark.parametrize('trained', ['all', 'head'])
def test_frozen_stages_get_no_gradient(trained):
    torch.manual_seed(0)
    cfg = Config.fromfile(CONFIGS / 'dfine_n.py').model
    cfg.backbone.update(init_cfg=None, frozen_stages=1 if trained == 'all' else 4)
    model = MODELS.build(cfg).train()
    stem, last = model.backbone.stem.stem1.conv, model.backbone.stages[-1]
    with lending(model, torch.bfloat16, lend=True):
        assert not stem.weight.requires_grad
        halves = [m.weight for m in last.modules() if isinstance(m, nn.Conv2d)]
        assert {half.requires_grad for half in halves} == {trained == 'all'}
    (losses, gradients), (lent_losses, lent_gradients) = (
        step(copy.deepcopy(model), torch.bfloat16, lend) for lend in (False, True)
    )
    assert lent_gradients.keys() == gradients.keys()
    assert 'backbone.stem.stem1.conv.weight' not in gradients
    torch.testing.assert_close(lent_losses, losses, rtol=0, atol=0)
    torch.testing.assert_close(lent_gradients, gradients, rtol=0, atol=0)


@pytest.fixture
def blocks():
    """Two convolutions with frozen norms that do something, and a linear layer."""
    torch.manual_seed(0)
    network = nn.ModuleDict(dict(a=ConvNorm(4, 4, 3), b=ConvNorm(4, 4, 3), c=nn.Linear(4, 4)))
    freeze_norms(network)
    for block in (network.a, network.b):
        block.bn.running_mean.uniform_()
        block.bn.running_var.uniform_(0.5, 2)
    return network


def largest_change(network, halves):
    """Of outputs, where weights are lent; those of half precision differ by up to 0.02."""
    x = torch.randn(1, 4, 5, 5)
    with torch.autocast('cpu', torch.bfloat16):
        expected = network.b(network.a(x))
        with halves(torch.bfloat16):
            return (network.b(network.a(x)) - expected).abs().max()


def test_what_is_no_parameter_is_not_lent(blocks):
    """Pruning puts a tensor in the place of the weight; the norm is not left out."""
    prune.identity(blocks.a.conv, 'weight')
    prune.identity(blocks.c, 'weight')
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(blocks.a(x), blocks.a.bn(blocks.a.conv(x)))
    halves = HalfWeights([blocks], [blocks])
    assert largest_change(blocks, halves) == 0
    with halves(torch.bfloat16):
        assert blocks.b.conv.weight.dtype == torch.bfloat16
    assert blocks.a.conv.weight.dtype == blocks.c.weight.dtype == torch.float32


def test_what_is_computed_from_a_parameter_is_not_lent(blocks):
    parametrize.register_parametrization(blocks.a.conv, 'weight', nn.Softsign())
    halves = HalfWeights([blocks], [blocks])
    assert largest_change(blocks, halves) < 0.02
    with halves(torch.bfloat16):
        assert blocks.b.conv.weight.dtype == torch.bfloat16
    assert blocks.a.conv.weight.dtype == torch.float32


def test_a_convolution_with_two_norms_is_not_lent(blocks):
    blocks.b.conv = blocks.a.conv
    halves = HalfWeights([blocks], [blocks])
    assert largest_change(blocks, halves) == 0
    with halves(torch.bfloat16):
        assert isinstance(blocks.a.conv.weight, nn.Parameter)


def test_a_norm_that_was_frozen_later_is_not_left_out(blocks):
    blocks.b.bn = nn.BatchNorm2d(4).eval()
    halves = HalfWeights([blocks], [])
    freeze_norms(blocks)
    blocks.b.bn.running_mean.uniform_()
    # Its scale multiplies a rounded weight.
    assert largest_change(blocks, halves) < 0.01


@pytest.mark.parametrize('frozen', [None, 0, 2])
def test_weights_of_all_shapes_and_layouts_are_multiplied_by_their_scales(frozen):
    torch.manual_seed(0)
    widths = [(4, 8, 3, 1), (6, 4, 1, 1), (4, 2, 3, 1), (8, 8, 3, 4), (4, 4, 3, 1), (6, 2, 1, 1)]
    network = nn.ModuleList(ConvNorm(i, o, k, groups=g) for i, o, k, g in widths)
    freeze_norms(network)
    for index, block in enumerate(network):
        block.bn.weight.uniform_(0.5, 2)
        block.bn.running_var.uniform_(0.5, 2)
        weight = block.conv.weight
        if index % 3 == 1:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        if index % 3 == 2:
            weight.data = weight.data.transpose(0, 1).contiguous().transpose(0, 1)
        weight.requires_grad_(index != frozen)
    with HalfWeights([network], [])(torch.bfloat16):
        halves = [block.conv.weight for block in network]
    gradients = [torch.randn_like(half, memory_format=torch.channels_last) for half in halves]
    wanted = [(h, g) for h, g in zip(halves, gradients, strict=True) if h.requires_grad]
    torch.autograd.backward(*zip(*wanted, strict=True))
    for index, (block, half, gradient) in enumerate(zip(network, halves, gradients, strict=True)):
        scale = block.bn.weight * (block.bn.running_var + block.bn.eps).rsqrt()
        weight = block.conv.weight
        product = weight.detach() * scale[:, None, None, None]
        torch.testing.assert_close(half.detach(), product.bfloat16(), rtol=0, atol=0)
        assert half.requires_grad == weight.requires_grad == (index != frozen)
        if index == frozen:
            assert weight.grad is None
            continue
        expected = gradient.float() * scale[:, None, None, None]
        torch.testing.assert_close(weight.grad, expected, rtol=0, atol=0)


def test_lending_twice_at_a_time(blocks):
    halves = HalfWeights([blocks], [blocks])
    with halves(torch.bfloat16), halves(torch.float16):
        assert blocks.a.conv.weight.dtype == torch.bfloat16
    assert isinstance(blocks.a.conv.weight, nn.Parameter)
    assert 'bias' not in vars(blocks.a.conv)


def test_parts_of_others_are_left_alone():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = ConvNorm(3, 4, 1)

    model = build_model('dfine_n')
    model.backbone = Own()
    with model._half_weights(torch.bfloat16):
        assert isinstance(model.backbone.conv.conv.weight, nn.Parameter)
        assert model.neck.input_proj[0].conv.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ('device', 'kind', 'lends'),
    [('cuda', torch.float32, True), ('cuda', torch.float64, False), ('cpu', torch.float32, False)],
)
def test_who_lends_weights(device, kind, lends, monkeypatch):
    """A GPU under autocast; not a CPU, nor compiled parts."""
    monkeypatch.setattr(torch, 'is_autocast_enabled', lambda device: True)
    monkeypatch.setattr(torch, 'get_autocast_dtype', lambda device: torch.bfloat16)
    model = build_model('dfine_n').to(kind)
    conv = model.backbone.stem.stem1.conv
    with model.lend_half_weights(torch.device(device)):
        assert conv.weight.dtype == (torch.bfloat16 if lends else kind)
    model.compiled = True
    with model.lend_half_weights(torch.device(device)):
        assert conv.weight.dtype == kind


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize('find_unused', [False, True])
def test_processes_exchange_the_gradients(find_unused, one_process, monkeypatch):
    """The wrapper for several processes finds all parameters and their gradients."""
    torch.manual_seed(0)
    model = build_model('dfine_n').train()
    losses, gradients = step(copy.deepcopy(model), torch.bfloat16, lend=True)
    monkeypatch.setattr(
        DEIMDetector, 'lend_half_weights', lambda self, _: self._half_weights(torch.bfloat16)
    )
    wrapper = MMDistributedDataParallel(
        model, find_unused_parameters=find_unused, gradient_as_bucket_view=True
    )
    images, samples = tiny_batch([2, 3], size=64)
    torch.manual_seed(0)
    with torch.autocast('cpu', torch.bfloat16):
        found = wrapper(images, samples, mode='loss')
    sum(found.values()).backward()
    torch.testing.assert_close(found, losses, rtol=0, atol=0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=0, msg=name)


def test_sharded_parameters_are_not_lent():
    # Without a GPU it can't be built.
    unit = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    nn.Module.__init__(unit)
    model = build_model('dfine_n')
    model.backbone.stages.append(unit)
    with model._half_weights(torch.bfloat16):
        assert isinstance(model.backbone.stem.stem1.conv.weight, nn.Parameter)
