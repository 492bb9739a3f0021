"""What a run does by device: a GPU's choices can be seen, and tried, on a CPU."""

import copy
import warnings

from deim_mmdet.engine.devices import laid_out, optimizer_options, set_precision, wrapper_options
from deim_mmdet.engine.resuming import match_parameters

import pytest
import torch
from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import nn

ON = dict(channels_last=True, tf32=True)


def network():
    """Convolutions whose weights have sides of one: in one layout by nature, in several by name."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1), nn.Sigmoid()
    )


def images():
    """As the data loader gives them."""
    return torch.rand(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ('device', 'env_cfg', 'expected'),
    [
        ('cuda', ON, ('high', True)),
        ('cuda', dict(tf32=False), ('highest', False)),
        ('cuda', {}, ('medium', None)),
        ('cpu', ON, ('medium', None)),
    ],
)
def test_precision_of_products(device, env_cfg, expected, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', torch.backends.cudnn.allow_tf32)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision('medium')
    try:
        set_precision(device, env_cfg)
        found = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
    products, convolutions = expected
    assert found == (products, before[1] if convolutions is None else convolutions)


@pytest.mark.parametrize(
    ('device', 'env_cfg', 'last'),
    [('cuda', ON, True), ('cuda', {}, False), ('npu', ON, False), ('cpu', {}, True)],
)
def test_layout_of_weights(device, env_cfg, last):
    model = nn.Sequential(network(), nn.Flatten(), nn.Linear(576, 2))
    values = copy.deepcopy(model.state_dict())
    model = laid_out(model, device, env_cfg)
    weight = model[0][0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == last
    assert (type(model[2]) is nn.Linear) == (device != 'cpu')
    for name, value in model.state_dict().items():
        assert torch.equal(value, values[name])


@pytest.mark.parametrize('device', ['cuda', 'cpu'])
def test_options_of_several_processes(device):
    options = wrapper_options(None, device, True)
    assert options['gradient_as_bucket_view']
    assert options['find_unused_parameters']
    assert not options['broadcast_buffers']
    assert ('device_ids' in options) == (device == 'cpu')
    given = dict(gradient_as_bucket_view=False, static_graph=True)
    assert wrapper_options(given, device, False) == {
        **options, **given, 'find_unused_parameters': False
    }  # fmt: skip
    for kind in ('mmengine.model.MMDistributedDataParallel', MMDistributedDataParallel):
        assert wrapper_options(dict(type=kind), device, True) == {**options, 'type': kind}
    other = wrapper_options(dict(type='MMFullyShardedDataParallel'), device, False)
    assert 'gradient_as_bucket_view' not in other


@pytest.fixture
def one_process(tmp_path):
    """A group of processes that has one."""
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/meeting', rank=0, world_size=1
    )
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize('env_cfg', [{}, ON], ids=['by rows', 'channels last'])
def test_gradients_have_the_strides_that_ddp_expects(env_cfg, one_process):
    options = wrapper_options(None, 'cpu', False)
    assert options.pop('type') == 'MMDistributedDataParallel'
    model = MMDistributedDataParallel(laid_out(network(), 'cuda', env_cfg), **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for _ in range(2):
            model.zero_grad()
            model(images()).square().sum().backward()
    strides = [str(w.message) for w in caught if 'strides do not match' in str(w.message)]
    assert bool(strides) == (env_cfg == {})
    # All gradients lie in one bucket.
    assert len({p.grad.untyped_storage().data_ptr() for p in model.parameters()}) == 1


@pytest.mark.parametrize(
    ('device', 'optimizer', 'fused'),
    [
        ('cuda', dict(type='AdamW'), True),
        ('cuda', dict(type='SGD', momentum=0.9), True),
        ('cuda', dict(type='AdamW', fused=False), False),
        ('cuda', dict(type='AdamW', foreach=True), None),
        ('cuda', dict(type='Adadelta'), None),
        ('npu', dict(type='AdamW'), None),
        ('cpu', dict(type='AdamW'), True),
        ('cpu', dict(type='AdamW', fused=False), False),
    ],
)
def test_the_optimiser_is_fused_where_it_can_be(device, optimizer, fused):
    config = dict(optimizer=dict(optimizer, lr=1e-3, weight_decay=0.1))
    before = copy.deepcopy(config)
    options = optimizer_options(config, device)
    assert config == before
    build = OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(type='RuleOptimWrapperConstructor', optim_wrapper_cfg=options)
    )
    model = network()
    wrapper = build(model)
    assert wrapper.param_groups[0].get('fused') == fused
    weight = model[0].weight.detach().clone()
    wrapper.update_params(model(images()).square().sum())
    assert not torch.equal(model[0].weight, weight)


def test_a_built_optimiser_is_left_alone():
    wrapper = OptimWrapper(torch.optim.AdamW(network().parameters()))
    assert optimizer_options(wrapper, 'cuda') is wrapper


def steps(model, optimizer, number):
    for _ in range(number):
        torch.manual_seed(1)
        optimizer.zero_grad()
        model(images()).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize('env_cfg', [{}, ON], ids=['by rows', 'channels last'])
def test_a_fused_optimiser_goes_on_from_one_that_was_not(env_cfg):
    """Its moments are those of another layout; the fused kernel would read them in its own."""
    first, second = network(), laid_out(network(), 'cuda', env_cfg)
    plain = torch.optim.AdamW(first.parameters(), lr=0.01)
    steps(first, plain, 2)
    second.load_state_dict(first.state_dict())
    fused = torch.optim.AdamW(second.parameters(), lr=0.01, fused=True)
    fused.load_state_dict(copy.deepcopy(plain.state_dict()))
    fused.param_groups[0]['fused'] = True
    match_parameters(fused)
    for optimizer, model in ((plain, first), (fused, second)):
        steps(model, optimizer, 3)
    for value, expected in zip(second.parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
