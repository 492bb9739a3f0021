"""Models of Hugging Face's transformers with random weights against ours with the same."""

import copy
import json
import re

from deim_mmdet.checkpoints.architectures import complete, identify
from deim_mmdet.checkpoints.convert import HUGGING_FACE, find_weights, to_our_names
from deim_mmdet.checkpoints.files import read_checkpoint
from deim_mmdet.checkpoints.huggingface import classes_beside, to_reference_names
from deim_mmdet.checkpoints.loading import SCHEME

import golden
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.runner import CheckpointLoader

transformers = pytest.importorskip('transformers')
pytest.importorskip('safetensors')

LABELS = {index: f'class {index}' for index in range(5)}


def hgnet(stem, widths, blocks, layers, affine, **options):
    """Config of transformers' HGNetv2; ``widths`` are the inner ones of its stages."""
    stages = len(widths)
    outputs = ([64, 256, 512, 1024] if stem == 16 else [128, 512, 1024, 2048])[:stages]
    first = {16: 16, 32: 64}[stem]
    return dict(
        model_type='hgnet_v2',
        hidden_sizes=outputs,
        depths=blocks,
        stem_channels=[3, stem, first],
        stage_in_channels=[first, *outputs[:-1]],
        stage_mid_channels=widths,
        stage_out_channels=outputs,
        stage_num_blocks=blocks,
        stage_downsample=[False, True, True, True][:stages],
        stage_light_block=[False, False, True, True][:stages],
        stage_kernel_size=[3, 3, 5, 5][:stages],
        stage_numb_of_layers=[layers] * stages,
        use_learnable_affine_block=affine,
        **options,
    )


DFINE_N = dict(
    backbone_config=hgnet(16, [16, 32, 64, 128], [1, 1, 2, 1], 3, True, out_indices=[3, 4]),
    d_model=128,
    encoder_hidden_dim=128,
    encoder_in_channels=[512, 1024],
    encoder_ffn_dim=512,
    encode_proj_layers=[1],
    feat_strides=[16, 32],
    hidden_expansion=0.34,
    depth_mult=0.5,
    num_feature_levels=2,
    decoder_in_channels=[128, 128],
    decoder_ffn_dim=512,
    decoder_layers=3,
    decoder_n_points=[6, 6],
)
DFINE_X = dict(
    backbone_config=hgnet(32, [64, 128, 256, 512], [1, 2, 5, 2], 6, False, out_indices=[2, 3, 4]),
    encoder_hidden_dim=384,
    encoder_ffn_dim=2048,
    decoder_in_channels=[384, 384, 384],
    decoder_n_points=[3, 6, 3],
    reg_scale=8.0,
)
BASIC = dict(model_type='rt_detr_resnet', layer_type='basic', hidden_sizes=[64, 128, 256, 512])
RTDETRV2_R18 = dict(
    backbone_config=BASIC | dict(depths=[2, 2, 2, 2], out_indices=[2, 3, 4]),
    encoder_in_channels=[128, 256, 512],
    hidden_expansion=0.5,
    decoder_layers=3,
)
DEIMV2_N = DFINE_N | dict(decoder_activation_function='silu')
DEIMV2_PICO = DEIMV2_N | dict(
    backbone_config=hgnet(16, [16, 32, 64], [1, 1, 2], 3, True, out_indices=[3]),
    d_model=112,
    encoder_hidden_dim=112,
    encoder_in_channels=[512],
    encoder_type='lite',
    encoder_layers=0,
    feat_strides=[16],
    decoder_in_channels=[112, 112],
    decoder_ffn_dim=320,
    decoder_n_points=[4, 2],
    num_queries=200,
    use_gateway=False,
    share_bbox_head=True,
)
DEIMV2_L = dict(
    backbone_config=dict(
        model_type='dinov3_vit', hidden_size=384, num_hidden_layers=12, num_attention_heads=6,
        intermediate_size=1536, num_register_tokens=4, out_indices=[6, 9, 12],
    ),
    d_model=224,
    encoder_hidden_dim=224,
    encoder_in_channels=[384, 384, 384],
    encoder_ffn_dim=896,
    encoder_has_trailing_conv=False,
    decoder_in_channels=[224, 224, 224],
    decoder_ffn_dim=1792,
    decoder_layers=4,
    decoder_n_points=[3, 6, 3],
    decoder_activation_function='silu',
    spatial_tuning_adapter_inplanes=32,
)  # fmt: skip
CASES = {
    'deimv2_l': ('Deimv2', DEIMV2_L, 160),
    'deimv2_n': ('Deimv2', DEIMV2_N, 320),
    'deimv2_pico': ('Deimv2', DEIMV2_PICO, 320),
    'dfine_n': ('DFine', DFINE_N, 320),
    'dfine_x': ('DFine', DFINE_X, 160),
    'rtdetrv2_r18': ('RTDetrV2', RTDETRV2_R18, 160),
    'rtdetrv2_r50': ('RTDetrV2', {}, 160),
}


def build(kind, options):
    """A model of transformers in double precision, all of its parameters random."""
    config = getattr(transformers, f'{kind}Config')(id2label=LABELS, **options)
    model = getattr(transformers, f'{kind}ForObjectDetection')(config).double().eval()
    for name, value in model.state_dict().items():
        if name.endswith(('reg_scale', 'up', 'points_scale')) or not value.is_floating_point():
            continue
        # fill() gives embeddings, told by their names, larger values than layers.
        name = name.replace('embed', 'layer')
        value.copy_(torch.from_numpy(golden._fill.fill(name, value.shape)))
    if kind == 'Deimv2':
        # As a conversion of the authors' weights leaves the projection that their network lacks.
        linear, norm = model.model.enc_output
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.ones_(norm.weight)
        for layer in (linear, norm):
            torch.nn.init.zeros_(layer.bias)
    return model


class FirstPositions(torch.nn.Module):
    """The positions of queries, computed once for all layers."""

    def __init__(self, head):
        super().__init__()
        self.head, self.positions = head, None

    def forward(self, references):
        if self.positions is None:
            self.positions = self.head(references)
        return self.positions


def as_published(model):
    """Take away what sets a DEIMv2 of transformers (5.23) apart from the authors' network."""
    for module in model.modules():
        if type(module).__name__ == 'Deimv2MLP' and isinstance(module.act, torch.nn.ReLU):
            module.act = torch.nn.SiLU()
    model.model.enc_output = torch.nn.Identity()
    model.model.decoder.query_pos_head = FirstPositions(model.model.decoder.query_pos_head)


@pytest.mark.parametrize('name', CASES)
def test_outputs_equal_those_of_transformers(name, tmp_path):
    kind, options, side = CASES[name]
    theirs = build(kind, options)
    theirs.save_pretrained(tmp_path)
    weights = find_weights(read_checkpoint(tmp_path / 'model.safetensors'))
    assert weights.naming == HUGGING_FACE
    state_dict = to_our_names(weights)
    model = identify(state_dict, deim=False)
    assert model.name == name
    cfg = copy.deepcopy(model.config.model)
    cfg.backbone.init_cfg = None
    ours = MODELS.build(cfg).double().eval()
    ours.load_state_dict(complete(state_dict, model.shapes), strict=True)
    pixels = torch.from_numpy(golden.image('transformers', (1, 3, side, side)))
    if kind == 'Deimv2':
        as_published(theirs)
    with torch.no_grad():
        expected = theirs(pixel_values=pixels)
        logits, boxes = ours.bbox_head(ours.extract_feat(pixels))
    assert logits.shape == (1, ours.bbox_head.num_queries, len(LABELS))
    torch.testing.assert_close(logits, expected.logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(boxes, expected.pred_boxes, atol=1e-6, rtol=0)
    loaded = CheckpointLoader.load_checkpoint(f'{SCHEME}{tmp_path}')
    assert loaded['meta']['dataset_meta']['classes'] == tuple(LABELS.values())
    assert all(torch.equal(value, state_dict[k]) for k, value in loaded['state_dict'].items())
    # The outputs depend on the input and differ between queries.
    assert logits.std(dim=1).min() > 1e-3
    assert boxes.std(dim=1).min() > 1e-3


def test_a_deimv2_that_was_trained_in_transformers_is_refused():
    names = build('Deimv2', DEIMV2_PICO).state_dict()
    names['model.enc_output.1.weight'][3] = 1.5
    with pytest.raises(ValueError, match=r'another one: .*\(model\.enc_output\.1\.weight\)'):
        to_reference_names(names)


def test_s_and_m_are_refused():
    tokens = dict(cls_token=torch.zeros(1, 1, 192), register_tokens=torch.zeros(1, 0, 192))
    names = {f'model.conv_encoder.backbone.embeddings.{k}': v for k, v in tokens.items()}
    with pytest.raises(ValueError, match=r"S or M of transformers.*Take the authors' file"):
        to_reference_names(names)


@pytest.fixture(scope='module')
def state_dict():
    return build('RTDetrV2', RTDETRV2_R18).state_dict()


def saved(state_dict):
    """As ``save_pretrained`` names it."""
    renamed = {}
    for name, value in state_dict.items():
        name = name.replace('.aifi.', '.encoder.').replace('.o_proj.', '.out_proj.')
        renamed[name.replace('.mlp.fc', '.fc')] = value
    return renamed


def test_heads_stored_under_either_name_or_both(state_dict):
    both = saved(state_dict)
    once = {k: v for k, v in both.items() if not k.startswith(('class_embed', 'bbox_embed'))}
    assert len(once) < len(both)
    expected = to_reference_names(once)
    heads = re.compile(r'model\.decoder\.((class|bbox)_embed)')
    outside = {heads.sub(r'\1', name): value for name, value in once.items()}
    for names in (both, outside):
        converted = to_reference_names(names)
        assert converted.keys() == expected.keys()
        assert all(torch.equal(converted[k], expected[k]) for k in expected)
    both['class_embed.1.bias'] = both['class_embed.1.bias'] + 1
    with pytest.raises(ValueError, match=r'second copy.*class_embed\.1\.bias'):
        to_reference_names(both)


def test_queries_keys_and_values_are_joined_in_this_order(state_dict):
    names = saved(state_dict)
    prefix = 'model.decoder.layers.1.self_attn'
    joined = to_reference_names(names)['decoder.decoder.layers.1.self_attn.in_proj_weight']
    for rows, part in zip(joined.split(256), 'qkv', strict=True):
        assert torch.equal(rows, names[f'{prefix}.{part}_proj.weight'])
    del names[f'{prefix}.k_proj.weight']
    with pytest.raises(ValueError, match=r'layers\.1\.self_attn has only the projections q, v of'):
        to_reference_names(names)


def test_unknown_names_are_refused(state_dict):
    names = saved(state_dict) | {'model.decoder.mask_head.weight': torch.ones(1)}
    with pytest.raises(ValueError, match=r'1 of \d+ names .*model\.decoder\.mask_head\.weight'):
        to_reference_names(names)


def test_class_names_saved_beside_the_model(tmp_path):
    assert classes_beside(tmp_path / 'model.safetensors') is None
    labels = {'10': 'k', '2': 'c', '0': 'a'}
    (tmp_path / 'config.json').write_text(json.dumps(dict(id2label=labels)))
    for path in (tmp_path, tmp_path / 'any.safetensors'):
        assert classes_beside(path) == ['a', 'c', 'k']
    (tmp_path / 'config.json').write_text(json.dumps(dict(id2label={'0': 'LABEL_0'})))
    assert classes_beside(tmp_path) is None
