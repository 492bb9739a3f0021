"""Names of parameters in transformers and in the reference, as pairs of templates."""

from .reference import DEIMV2, DFINE, RTDETRV2


def _hgnet(prefix: str) -> list[tuple[str, str]]:
    """Pairs for HGNetv2, whose names begin with ``prefix`` in transformers."""
    return [
        (f'{prefix}.{theirs}.{{path}}.{inner}.{{leaf}}',
         f'backbone.{ours}.{{path}}.{outer}.{{leaf}}')
        for theirs, ours in (('embedder', 'stem'), ('encoder.stages.{i}', 'stages.{i}'))
        for inner, outer in (('convolution', 'conv'), ('normalization', 'bn'), ('lab', 'lab'))
    ]  # fmt: skip


_RESNET = [
    *(
        (f'model.backbone.model.embedder.embedder.{k}.{inner}.{{leaf}}',
         f'backbone.conv1.conv1_{k + 1}.{outer}.{{leaf}}')
        for k in range(3)
        for inner, outer in (('convolution', 'conv'), ('normalization', 'norm'))
    ),
    *(
        (f'model.backbone.model.encoder.stages.{{i}}.layers.{theirs}.{inner}.{{leaf}}',
         f'backbone.res_layers.{{i}}.blocks.{ours}.{outer}.{{leaf}}')
        for theirs, ours in (
            ('{j}.layer.0', '{j}.branch2a'), ('{j}.layer.1', '{j}.branch2b'),
            ('{j}.layer.2', '{j}.branch2c'),
            ('{j}.shortcut', '{j}.short'), ('{j}.shortcut.1', '{j}.short.conv'),
        )
        for inner, outer in (('convolution', 'conv'), ('normalization', 'norm'))
    ),
]  # fmt: skip

NECK = [
    *(
        (f'model.encoder.encoder.0.layers.0.{theirs}.{{path}}',
         f'encoder.encoder.0.layers.0.{ours}.{{path}}')
        for theirs, ours in (
            ('self_attn', 'self_attn'), ('fc1', 'linear1'), ('fc2', 'linear2'),
            ('self_attn_layer_norm', 'norm1'), ('final_layer_norm', 'norm2'),
        )
    ),
    ('model.encoder_input_proj.{i}.0.{leaf}', 'encoder.input_proj.{i}.conv.{leaf}'),
    ('model.encoder_input_proj.{i}.1.{leaf}', 'encoder.input_proj.{i}.norm.{leaf}'),
    ('model.encoder.lateral_convs.{path}', 'encoder.lateral_convs.{path}'),
]  # fmt: skip

HEAD = [
    ('model.decoder_input_proj.{i}.0.{leaf}', 'decoder.input_proj.{i}.conv.{leaf}'),
    ('model.decoder_input_proj.{i}.1.{leaf}', 'decoder.input_proj.{i}.norm.{leaf}'),
    ('model.denoising_class_embed.{leaf}', 'decoder.denoising_class_embed.{leaf}'),
    ('model.enc_output.0.{leaf}', 'decoder.enc_output.proj.{leaf}'),
    ('model.enc_output.1.{leaf}', 'decoder.enc_output.norm.{leaf}'),
    ('model.enc_score_head.{leaf}', 'decoder.enc_score_head.{leaf}'),
    ('model.enc_bbox_head.{path}', 'decoder.enc_bbox_head.{path}'),
    ('model.decoder.query_pos_head.{path}', 'decoder.query_pos_head.{path}'),
    # The heads of the decoder layers are stored under one of two names, or under both.
    ('model.decoder.class_embed.{path}', 'decoder.dec_score_head.{path}'),
    ('class_embed.{path}', 'decoder.dec_score_head.{path}'),
    ('model.decoder.bbox_embed.{path}', 'decoder.dec_bbox_head.{path}'),
    ('bbox_embed.{path}', 'decoder.dec_bbox_head.{path}'),
    *(
        (f'model.decoder.layers.{{i}}.{theirs}.{{path}}',
         f'decoder.decoder.layers.{{i}}.{ours}.{{path}}')
        for theirs, ours in (
            ('self_attn', 'self_attn'), ('self_attn_layer_norm', 'norm1'),
            ('encoder_attn', 'cross_attn'), ('encoder_attn_layer_norm', 'norm2'),
            ('gateway', 'gateway'), ('fc1', 'linear1'), ('fc2', 'linear2'),
            ('final_layer_norm', 'norm3'),
        )
    ),
]  # fmt: skip

# What decoders with distributions and their necks have.
_DISTRIBUTIONS = [
    *(
        (f'model.encoder.downsample_convs.{{i}}.conv{k}.{{path}}',
         f'encoder.downsample_convs.{{i}}.0.cv{k}.{{path}}')
        for k in (1, 2)
    ),
    ('model.decoder.up', 'decoder.up'),
    ('model.decoder.reg_scale', 'decoder.reg_scale'),
    ('model.decoder.pre_bbox_head.{path}', 'decoder.pre_bbox_head.{path}'),
    ('model.decoder.lqe_layers.{path}', 'decoder.decoder.lqe_layers.{path}'),
]  # fmt: skip

# Backbones, fusion blocks, and parts that only one kind of decoder has.
KINDS = {
    DFINE: [
        *_hgnet('model.backbone.model'),
        *(
            (f'model.encoder.{part}.{{i}}.{theirs}.{{path}}',
             f'encoder.{part}.{{i}}.{ours}.{{path}}')
            for part in ('fpn_blocks', 'pan_blocks')
            for theirs, ours in (
                ('conv1', 'cv1'), ('csp_rep1', 'cv2.0'), ('conv2', 'cv2.1'),
                ('csp_rep2', 'cv3.0'), ('conv3', 'cv3.1'), ('conv4', 'cv4'),
            )
        ),
        *_DISTRIBUTIONS,
    ],
    DEIMV2: [
        *_hgnet('model.conv_encoder.model'),
        ('model.conv_encoder.encoder_input_proj.{path}', 'encoder.input_proj.{path}'),
        *(
            (f'model.encoder.aifi.0.layers.0.{theirs}.{{path}}',
             f'encoder.encoder.0.layers.0.{ours}.{{path}}')
            for theirs, ours in (
                ('self_attn.o_proj', 'self_attn.out_proj'), ('self_attn', 'self_attn'),
                ('mlp.layers.0', 'linear1'), ('mlp.layers.1', 'linear2'),
                ('self_attn_layer_norm', 'norm1'), ('final_layer_norm', 'norm2'),
            )
        ),
        *(
            (f'model.encoder.{part}.{theirs}.{{path}}', f'encoder.{part}.{ours}.{{path}}')
            for part in ('fpn_blocks.{i}', 'pan_blocks.{i}', 'fpn_block', 'pan_block')
            for theirs, ours in (
                ('conv1', 'cv1'), ('conv2', 'cv4'),
                ('csp_rep1.conv2', 'cv2.1'), ('csp_rep1', 'cv2.0'),
                ('csp_rep2.conv2', 'cv3.1'), ('csp_rep2', 'cv3.0'),
            )
        ),
        ('model.encoder.input_proj.{path}', 'encoder.input_proj.{path}'),
        ('model.encoder.bi_fusion_conv.{path}', 'encoder.bi_fusion.cv.{path}'),
        *(
            (f'model.encoder.down_conv{k}.{theirs}.{{leaf}}',
             f'encoder.down_sample{k}.{ours}.{{leaf}}')
            for k in (1, 2)
            for theirs, ours in (('conv', 1), ('norm', 2))
        ),
        *(
            (f'model.decoder.layers.{{i}}.{theirs}', f'decoder.decoder.layers.{{i}}.{ours}')
            for theirs, ours in (
                ('self_attn.o_proj.{leaf}', 'self_attn.out_proj.{leaf}'),
                ('mlp.gate_up.{leaf}', 'swish_ffn.w12.{leaf}'),
                ('mlp.down_proj.{leaf}', 'swish_ffn.w3.{leaf}'),
                ('gateway.norm.weight', 'gateway.norm.scale'),
                ('self_attn_layer_norm.weight', 'norm1.scale'),
                ('encoder_attn_layer_norm.weight', 'norm2.scale'),
                ('final_layer_norm.weight', 'norm3.scale'),
            )
        ),
        *_DISTRIBUTIONS,
    ],
    RTDETRV2: [
        *_RESNET,
        *(
            (f'model.encoder.{part}.{{path}}', f'encoder.{part}.{{path}}')
            for part in ('fpn_blocks', 'pan_blocks', 'downsample_convs')
        ),
    ],
}  # fmt: skip
