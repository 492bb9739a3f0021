"""The vision transformer's positions, other names of its weights, and the backbones around it."""

import math
import sys
from types import SimpleNamespace

from deim_mmdet.checkpoints.loading import SCHEME
from deim_mmdet.models.backbones import ECViT, VisionTransformer, ViTAdapter
from deim_mmdet.models.backbones.vit_adapter import resize
from deim_mmdet.models.layers.vit import RotaryPositions, rotate

import pytest
import torch
from measuring.half_products import HalfProducts
from mmdet.registry import MODELS
from mmengine.runner import CheckpointLoader

SIZE = dict(embed_dims=16, num_heads=2, depth=3)
FORMS = dict(
    plain=dict(form='plain'),
    ecvit=dict(form='ecvit'),
    dinov3=dict(form='dinov3'),
    gated=dict(form='dinov3', gated_ffn=True, ffn_channels=24),
)


def transformer(form='plain', **options):
    torch.manual_seed(0)
    model = VisionTransformer(**SIZE, **dict(out_indices=(0, 2)) | FORMS[form] | options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_attention_sees_displacements_only():
    """Turned queries and keys have the same products wherever the pair lies in the grid."""
    height, width, others = 4, 6, 3
    tables = RotaryPositions(8).double()(height, width, others)
    query, key = (
        rotate(vector.expand(1, others + height * width, 1, 8), *tables)[0, :, 0]
        for vector in torch.randn(2, 8).double()
    )
    products = (query @ key.T)[others:, others:].unflatten(0, (height, width))
    products = products.unflatten(-1, (height, width))
    for move in ((0, 1), (1, 0), (2, 3)):
        same = torch.stack(
            [
                products[row, column, row + move[0], column + move[1]]
                for row in range(height - move[0])
                for column in range(width - move[1])
            ]
        )
        assert same.std() < 1e-12
        assert (same[0] - products[0, 0, 0, 0]).abs() > 1e-6
    # Other tokens have no place.
    assert torch.equal(query[:others], query[:1].expand(others, -1))


@pytest.mark.parametrize('form', FORMS)
def test_gradient_checkpointing_keeps_less_and_changes_nothing(form):
    image, results = torch.rand(2, 3, 64, 96), []
    for with_cp in (False, True):
        model, kept = transformer(form, with_cp=with_cp).train(), []
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, kept=kept: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            maps = model(image)
        torch.stack(maps).square().sum().backward()
        results.append(
            (maps, [p.grad for p in model.parameters() if p.grad is not None], sum(kept))
        )
    (plain, gradients, much), (maps, same_gradients, little) = results
    torch.testing.assert_close(maps, plain)
    torch.testing.assert_close(same_gradients, gradients)
    # Images and what makes the tokens are kept either way.
    assert little < 0.7 * much


@pytest.mark.parametrize(
    ('backbone', 'part'),
    [
        (
            dict(type='ViTAdapter', vit=dict(**SIZE, out_indices=(0, 1, 2)), adapter_channels=4),
            'vit',
        ),
        (dict(type='ECViT', **SIZE), 'transformer'),
    ],
)
def test_backbones_hand_the_switch_down(backbone, part):
    for options in ({}, dict(with_cp=True), dict(with_cp=False)):
        model = MODELS.build(dict(backbone, out_channels=8, **options))
        assert getattr(model, part).with_cp is options.get('with_cp', False)


@pytest.mark.parametrize('form', FORMS)
def test_maps_of_images_of_any_size(form):
    model = transformer(form)
    for height, width in ((64, 96), (32, 32), (64, 96)):
        image = torch.rand(1, 3, height, width)
        maps = model(image)
        assert [m.shape for m in maps] == [(1, 16, height // 16, width // 16)] * 2
        torch.testing.assert_close(maps[1], transformer(form)(image)[1])


def test_tables_follow_the_loaded_periods():
    model, image = transformer(), torch.rand(1, 3, 32, 64)
    with torch.inference_mode():
        before = model(image)[1].clone()
    state_dict = model.state_dict()
    assert state_dict['rope_embed.periods'].tolist() == pytest.approx([1, 10])
    model.load_state_dict({**state_dict, 'rope_embed.periods': torch.tensor([1.0, 5.0])})
    after = model(image)[1]
    assert (after - before).abs().max() > 1e-4
    # What inference has computed serves training.
    after.sum().backward()


@pytest.mark.parametrize('draw', [0.0, 1.0])
def test_positions_of_dinov3_vary_in_training(monkeypatch, draw):
    """The ends of the range measure in half the unit, which doubles all angles, and in twice it."""
    draws = []

    def fake_rand(shape, **options):
        draws.append(shape)
        return torch.full(shape, draw, **options)

    monkeypatch.setattr(torch, 'rand', fake_rand)
    image = torch.zeros(1, 3, 32, 64)
    for form, number in (('dinov3', SIZE['depth']), ('plain', 0), ('ecvit', 0)):
        model = transformer(form)
        model(image)
        assert not draws
        model.train()(image)
        assert draws == number * [()]
        draws.clear()
    positions = transformer('dinov3').double().rope_embed
    single, double = positions(2, 3, 1), positions.train()(2, 3, 1)
    if draw == 0:
        single, double = double, single
    (cosines, sines), (doubled_cosines, doubled_sines) = single, double
    torch.testing.assert_close(doubled_cosines, 2 * cosines**2 - 1)
    torch.testing.assert_close(doubled_sines, 2 * sines * cosines)


@pytest.mark.parametrize('half', [torch.bfloat16, torch.float16], ids=str)
def test_tables_of_half_precision_models_are_exact(half):
    positions = RotaryPositions(8)
    expected = positions(2, 3, 1)
    positions.to(half)
    for table, exact in zip(positions(2, 3, 1), expected, strict=True):
        assert table.dtype == torch.float32
        torch.testing.assert_close(table, exact)


@pytest.mark.parametrize('form', FORMS)
def test_autocast_returns_what_convolutions_take(form):
    model, image = transformer(form).train(), torch.rand(1, 3, 32, 32)
    with HalfProducts(), torch.autocast('cpu', torch.bfloat16):
        maps = model(image)
    assert {m.dtype for m in maps} == {torch.bfloat16}
    sum(m.float().sum() for m in maps).backward()
    # Every parameter takes part in training; the one that only pre-training uses gets zeros.
    assert all(p.grad is not None for p in model.parameters())


def timm_names(state_dict):
    """The state dict as timm's ``vit_small(_plus)_patch16_dinov3_qkvb`` names it."""
    theirs = {}
    for name, value in state_dict.items():
        if name.endswith(('mask_token', 'bias_mask', 'periods')):
            continue
        if name.endswith('qkv.bias'):
            queries, _, values = value.chunk(3)
            stem = name.removesuffix('qkv.bias')
            theirs |= {f'{stem}q_bias': queries, f'{stem}v_bias': values}
            continue
        for ours, other in (
            ('storage_tokens', 'reg_token'), ('ls1.gamma', 'gamma_1'), ('ls2.gamma', 'gamma_2'),
            ('.w1.', '.fc1_g.'), ('.w2.', '.fc1_x.'), ('.w3.', '.fc2.'),
        ):  # fmt: skip
            name = name.replace(ours, other)
        theirs[name] = value
    return theirs


@pytest.mark.parametrize('form', ['dinov3', 'gated'])
def test_weights_of_timm(form):
    model, image = transformer(form), torch.rand(1, 3, 32, 64)
    other = VisionTransformer(**SIZE, out_indices=(0, 2), **FORMS[form]).eval()
    other.load_state_dict(timm_names(model.state_dict()), strict=True)
    for got, expected in zip(other(image), model(image), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize('gated', [False, True])
def test_outputs_equal_those_of_timm(gated):
    try:
        from timm.models.eva import Eva
    except ImportError as error:
        pytest.skip(f'timm cannot be imported: {error}')
    torch.manual_seed(0)
    theirs = Eva(
        img_size=32, patch_size=16, embed_dim=16, depth=3, num_heads=2, num_classes=0,
        dynamic_img_size=True, init_values=1.0, rope_type='dinov3', rope_temperature=100,
        rope_rotate_half=True, use_rot_pos_emb=True, use_abs_pos_emb=False, num_reg_tokens=4,
        use_fc_norm=False, swiglu_mlp=gated, swiglu_align_to=8,
    ).eval()  # fmt: skip
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    hidden = theirs.blocks[0].mlp.fc2.in_features
    options = dict(form='dinov3', gated_ffn=gated, ffn_channels=hidden, out_indices=(0, 2))
    ours = VisionTransformer(**SIZE, **options).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    image = torch.rand(1, 3, 32, 64)
    expected = theirs.forward_intermediates(
        image, indices=[0, 2], norm=True, intermediates_only=True
    )
    for got, want in zip(ours(image), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_pretrained_weights_come_through_timm(monkeypatch):
    source, image = transformer('dinov3', out_indices=(0, 1, 2)), torch.rand(1, 3, 32, 64)

    def create_model(name, pretrained, num_classes):
        assert (name, pretrained, num_classes) == ('vit_small', True, 0)
        return SimpleNamespace(state_dict=lambda: timm_names(source.state_dict()))

    monkeypatch.setitem(sys.modules, 'timm', SimpleNamespace(create_model=create_model))
    initial = dict(type='Pretrained', checkpoint=f'{SCHEME}timm://vit_small')
    vit = dict(**SIZE, out_indices=(0, 1, 2), **FORMS['dinov3'])
    backbone = ViTAdapter(vit, 4, 8, init_cfg=initial).eval()
    backbone.init_weights()
    for got, expected in zip(backbone.vit(image), source(image), strict=True):
        torch.testing.assert_close(got, expected)


def test_missing_timm_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(RuntimeError, match=r"pip install 'deim_mmdet\[dinov3\]'"):
        CheckpointLoader.load_checkpoint('timm://vit_small')


def adapter(**options):
    vit = dict(**SIZE, out_indices=(0, 1, 2))
    return ViTAdapter(vit, adapter_channels=4, out_channels=8, **options)


def ecvit(out_channels=8, **options):
    return ECViT(**SIZE, out_channels=out_channels, **options)


@pytest.mark.parametrize('build', [adapter, ecvit])
def test_a_grey_image_gives_what_it_gives_three_times(build):
    torch.manual_seed(0)
    three, grey = build().eval(), build(in_channels=1).eval()
    grey.load_state_dict(three.state_dict())
    image = torch.rand(1, 1, 64, 64)
    for expected, got in zip(three(image.repeat(1, 3, 1, 1)), grey(image), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('build', 'part'), [(adapter, 'vit'), (ecvit, 'transformer')])
@pytest.mark.parametrize('frozen_stages', [-1, 0, 2, SIZE['depth'], SIZE['depth'] + 1])
def test_the_first_blocks_stay(build, part, frozen_stages):
    backbone = build(frozen_stages=frozen_stages).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    outputs = backbone(torch.rand(2, 3, 64, 64))
    if frozen_stages <= SIZE['depth']:
        sum(output.square().mean() for output in outputs).backward()
        trained = [p for p in backbone.parameters() if p.requires_grad]
        torch.optim.SGD(trained, lr=1e4).step()
    after = backbone.state_dict()
    for name, value in before.items():
        if name.endswith(('num_batches_tracked', 'periods')):
            continue
        inner = name.removeprefix(f'{part}.')
        block = int(inner.split('.')[1]) if inner.startswith('blocks.') else -1
        stage = SIZE['depth'] + 1 if inner == name else block + 1
        assert torch.equal(after[name], value) == (stage <= frozen_stages), name


@pytest.mark.parametrize(('build', 'part'), [(adapter, 'vit'), (ecvit, 'transformer')])
@pytest.mark.parametrize('wrapper', ['', '_model.'])
def test_weights_of_the_transformer_alone(build, part, wrapper, tmp_path):
    backbone = build()
    form = 'plain' if part == 'vit' else 'ecvit'
    source = transformer(form).state_dict()
    # As EdgeCrafter's files name the norms of the first convolutions.
    published = {
        wrapper + (n.replace('.bn.', '.norm.') if 'patch_embed' in n else n): value
        for n, value in source.items()
    }
    torch.save(dict(model=published), tmp_path / 'vit.pth')
    backbone.init_cfg = dict(type='Pretrained', checkpoint=f'{SCHEME}{tmp_path}/vit.pth')
    backbone.init_weights()
    loaded = getattr(backbone, part).state_dict()
    assert loaded.keys() == source.keys()
    assert all(torch.equal(value, source[name]) for name, value in loaded.items())
    # A whole backbone's weights are taken as they are.
    build().load_state_dict(backbone.state_dict(), strict=True)


@pytest.mark.parametrize(('build', 'channels'), [(adapter, 8), (ecvit, 8), (ecvit, 16)])
def test_levels_of_images_that_are_not_square(build, channels):
    backbone = build() if channels == 8 else build(channels)
    levels = backbone.eval()(torch.rand(2, 3, 64, 96))
    assert [level.shape for level in levels] == [
        (2, channels, 64 // stride, 96 // stride) for stride in (8, 16, 32)
    ]


@pytest.mark.parametrize('form', ['plain', 'dinov3', 'gated'])
@pytest.mark.parametrize('size', [(64, 96), (61, 81), (5, 40)])
def test_patches_that_go_beyond_the_image_are_filled_with_zeros(form, size):
    model, image = transformer(form), torch.rand(1, 3, *size)
    filled = torch.zeros(1, 3, *(math.ceil(side / 16) * 16 for side in size))
    filled[..., : size[0], : size[1]] = image
    for got, expected in zip(model(image), model(filled), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize('build', [adapter, ecvit])
@pytest.mark.parametrize('size', [(61, 97), (48, 80), (16, 16), (8, 40)])
def test_levels_of_images_that_the_strides_do_not_divide(build, size):
    """The sizes are those of convolutional backbones, which other detectors count on."""
    levels = build().eval()(torch.rand(1, 3, *size))
    assert [level.shape[2:] for level in levels] == [
        tuple(math.ceil(side / stride) for side in size) for stride in (8, 16, 32)
    ]


@pytest.mark.parametrize(
    ('factor', 'columns', 'expected'),
    [
        (2, 9, [8, 12, 20, 28, 36, 44, 52, 60, 68]),
        (1, 5, [8, 24, 40, 56, 72]),
        # The map has no sixth column: the last is continued.
        (0.5, 3, [16, 48, 72]),
    ],
)
def test_a_resized_map_keeps_places(factor, columns, expected):
    """Each cell of the map holds the place of its centre in pixels, at a stride of 16."""
    places = (torch.arange(5.0) * 16 + 8).expand(1, 1, 3, 5)
    rows = math.ceil(3 * factor)
    resized = resize(places, factor, (rows, columns))
    torch.testing.assert_close(resized, torch.tensor(expected).float().expand(1, 1, rows, columns))


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="no form 'dino'"):
        VisionTransformer(**SIZE, form='dino')
    with pytest.raises(ValueError, match='among 0 … 2'):
        VisionTransformer(**SIZE, out_indices=(3,))
    for width, heads in ((12, 2), (194, 3)):
        with pytest.raises(ValueError, match=f'got embed_dims={width}, num_heads={heads}'):
            VisionTransformer(width, heads, depth=1, out_indices=(0,))
    with pytest.raises(ValueError, match='three out_indices'):
        ViTAdapter(dict(**SIZE, out_indices=(2,)), 4, 8)
