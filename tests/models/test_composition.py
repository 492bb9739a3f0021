"""Heads of parts: the flat configs of version 0.1, and parts that others add."""

import warnings

from deim_mmdet.models.dense_heads import TopKPostprocess
from deim_mmdet.models.layers import DFINEDecoder
from deim_mmdet.models.layers.input_channels import input_channels
from deim_mmdet.models.losses import AuxiliaryTerm, DistanceTerm, LossTerm
from deim_mmdet.models.task_modules import HungarianMatcher, Pairs

import numpy as np
import pytest
import torch
from golden import CONFIGS
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from tiny_detectors import CLASSES, NECK, tiny_batch, tiny_detector
from torch import nn

# Heads as version 0.1 wrote them, and the same today.
FLAT = dict(
    dfine=dict(
        type='DFINEHead', num_classes=3, in_channels=[32, 32], num_points=[3, 6], embed_dims=32,
        num_layers=2, num_heads=4, ffn_channels=16, num_queries=7, reg_max=16, reg_scale=8.0,
        act='ReLU', denoising=dict(num_queries=10, label_noise=0.4, box_noise=0.8),
        matcher=dict(type='HungarianMatcher', cost_class=1.0),
        loss_cls=dict(type='VarifocalQualityLoss', alpha=0.6, gamma=2.0, loss_weight=1.5),
        loss_bbox=dict(type='L1Loss', loss_weight=4.0),
        loss_iou=dict(type='CIoULoss', eps=1e-7, loss_weight=3.0),
        loss_fgl=dict(type='FineGrainedLocalizationLoss', loss_weight=0.2),
        loss_ddf=dict(type='DecoupledDistillationFocalLoss', temperature=4.0, loss_weight=1.0),
        test_cfg=dict(max_per_img=9),
    ),
    rtdetr=dict(
        type='RTDETRHead', num_classes=3, in_channels=[32, 32], num_points=[2, 2], embed_dims=32,
        num_layers=3, num_eval_layers=2, ffn_channels=16, num_queries=7,
        query_position_channels=[64], sampling='discrete', act='ReLU', denoising=None,
        loss_cls=dict(type='MatchabilityAwareLoss', gamma=2.0), test_cfg=dict(max_per_img=5),
    ),
)  # fmt: skip
COMPOSED = dict(
    dfine=dict(
        type='DFINEHead', num_classes=3, in_channels=[32, 32], embed_dims=32,
        query_selection=dict(num_queries=7, act='ReLU'),
        denoising=dict(num_queries=10, label_noise=0.4, box_noise=0.8),
        decoder=dict(num_points=[3, 6], num_layers=2, num_heads=4, ffn_channels=16, reg_max=16,
                     reg_scale=8.0, act='ReLU'),
        criterion=dict(
            matcher=dict(type='HungarianMatcher', cost_class=1.0),
            terms=dict(
                loss_cls=dict(loss=dict(type='VarifocalQualityLoss', alpha=0.6, gamma=2.0,
                                        loss_weight=1.5)),
                loss_bbox=dict(loss=dict(loss_weight=4.0)),
                loss_iou=dict(loss=dict(type='CIoULoss', eps=1e-7, loss_weight=3.0)),
                loss_fgl=dict(loss=dict(loss_weight=0.2)),
                loss_ddf=dict(loss=dict(temperature=4.0, loss_weight=1.0)),
            ),
        ),
        postprocess=dict(max_per_img=9),
    ),
    rtdetr=dict(
        type='RTDETRHead', num_classes=3, in_channels=[32, 32], embed_dims=32,
        query_selection=dict(num_queries=7, act='ReLU'),
        denoising=None,
        decoder=dict(num_points=[2, 2], num_layers=3, num_eval_layers=2, ffn_channels=16,
                     query_position_channels=[64], sampling='discrete', act='ReLU'),
        criterion=dict(terms=dict(loss_cls=dict(loss=dict(gamma=2.0)))),
        postprocess=dict(max_per_img=5),
    ),
)  # fmt: skip
FEATS = [torch.rand(2, 32, 4, 6), torch.rand(2, 32, 2, 3)]


def batch(counts=(3, 1), size=(64, 96)):
    random = torch.Generator().manual_seed(0)
    samples = []
    for count in counts:
        corner = torch.rand(count, 2, generator=random) * 30
        boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=random) * 20], -1)
        sample = DetDataSample(metainfo=dict(img_shape=size, scale_factor=(1.0, 1.0)))
        sample.gt_instances = InstanceData(
            bboxes=boxes, labels=torch.randint(3, (count,), generator=random)
        )
        samples.append(sample)
    return samples


def built(config):
    torch.manual_seed(0)
    head = MODELS.build(config)
    for parameter in head.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return head


@pytest.mark.parametrize('kind', sorted(FLAT))
def test_flat_configs_of_version_0_1_are_the_composed_ones(kind):
    with pytest.warns(UserWarning, match='takes its parts as configs') as told:
        flat = built(FLAT[kind])
    [warning] = [str(w.message) for w in told if 'parts as configs' in str(w.message)]
    assert 'num_queries is now query_selection.num_queries' in warning
    assert 'act is now query_selection.act and decoder.act' in warning
    assert 'loss_cls is now criterion.terms.loss_cls.loss' in warning
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        composed = built(COMPOSED[kind])
    state, expected = flat.state_dict(), composed.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    losses = []
    for head in (flat, composed):
        torch.manual_seed(1)
        losses.append(head.loss(FEATS, batch()))
    assert list(losses[0]) == list(losses[1])
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[1])
    assert len(flat.eval().predict(FEATS, batch())[0]) == FLAT[kind]['test_cfg']['max_per_img']


def test_flat_settings_over_a_config_of_today():
    """A user's config of version 0.1 that inherits one of the package's."""
    cfg = Config.fromfile(CONFIGS / 'deim_dfine_n.py')
    cfg.merge_from_dict(
        dict(
            model=dict(
                bbox_head=dict(
                    num_classes=3, num_layers=2, num_queries=50, act='ReLU',
                    denoising=dict(num_queries=20),
                    loss_cls=dict(_delete_=True, type='VarifocalQualityLoss', alpha=0.6),
                    loss_bbox=dict(loss_weight=1.0),
                ),
                test_cfg=dict(max_per_img=20),
            )
        )
    )  # fmt: skip
    cfg.model.backbone.init_cfg = None
    with pytest.warns(UserWarning, match=r'test_cfg|max_per_img is now postprocess\.max_per_img'):
        head = MODELS.build(cfg.model).bbox_head
    assert (len(head.decoder.layers), head.num_queries) == (2, 50)
    assert head.denoising.num_queries == 20
    assert head.denoising.label_noise == 0.5
    assert isinstance(head.decoder.layers[0].act, nn.ReLU)
    assert isinstance(head.query_selection.box.act, nn.ReLU)
    losses = {name: term.loss for name, term in head.criterion.terms.items()}
    assert type(losses['loss_cls']).__name__ == 'VarifocalQualityLoss'
    assert (losses['loss_cls'].alpha, losses['loss_cls'].gamma) == (0.6, 2.0)
    assert losses['loss_bbox'].loss_weight == 1.0
    assert losses['loss_ddf'].loss_weight == 1.5
    assert head.postprocess.max_per_img == 20


def test_a_setting_of_no_part_is_refused():
    with pytest.raises(TypeError, match='no setting num_query'):
        MODELS.build(dict(COMPOSED['dfine'], num_query=3))


def test_a_term_that_is_not_wanted_goes():
    config = dict(COMPOSED['dfine'], criterion=dict(terms=dict(loss_ddf=None)))
    losses = built(config).loss(FEATS, batch())
    assert not any('ddf' in name for name in losses)
    assert {'loss_fgl', 'dn.d0.loss_bbox', 'pre.loss_cls'} <= losses.keys()


@pytest.mark.parametrize(
    ('head', 'change', 'message'),
    [
        ('dfine', dict(query_selection=dict(num_queries=0)), 'num_queries must be an integer'),
        ('dfine', dict(denoising=dict(num_queries=-5)), 'num_queries must be an integer'),
        ('dfine', dict(denoising=dict(label_noise=3)), r'label_noise must be a number in \[0, 1\]'),
        ('dfine', dict(denoising=dict(box_noise=-1)), r'box_noise must be a number in \[0, inf\]'),
        ('dfine', dict(decoder=dict(num_points=[3, 6], reg_max=2)), 'even reg_max of at least 4'),
        ('dfine', dict(decoder=dict(num_points=[3, 6], num_layers=0)), 'num_layers must be'),
        ('rtdetr', dict(decoder=dict(num_points=[2, 2], num_layers=0)), 'num_layers=0 that are'),
        ('dfine', dict(postprocess=dict(max_per_img=0)), 'max_per_img must be an integer'),
        (
            'dfine',
            dict(criterion=dict(terms=dict(aspect=dict(type='AspectTerm')))),
            'terms.aspect would not be trained: .* call it loss_aspect',
        ),
        (
            'dfine',
            dict(criterion=dict(terms=dict(loss_clss=None))),
            'terms.loss_clss=None removes nothing: the terms are loss_cls, loss_bbox',
        ),
        (
            'rtdetr',
            dict(criterion=dict(terms=dict(loss_cls=None, loss_bbox=None, loss_iou=None))),
            'criterion.terms leaves no term',
        ),
    ],
)
def test_settings_out_of_range_are_refused(head, change, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build({**COMPOSED[head], **change})


def test_boxes_end_at_the_border_where_that_is_asked_for():
    """As those of mmdet's heads do; by default they stay as published."""
    logits, sizes = torch.zeros(1, 2, 1), torch.tensor([[200.0, 100.0]])
    logits[0, 1] = -1
    boxes = torch.tensor([[[0.1, 0.5, 0.4, 1.2], [0.95, 0.5, 0.2, 0.5]]])
    found = [TopKPostprocess(clip=clip)(logits, boxes, sizes)[1][0] for clip in (False, True)]
    torch.testing.assert_close(
        found[0], torch.tensor([[-20.0, -10.0, 60.0, 110.0], [170.0, 25.0, 210.0, 75.0]])
    )
    torch.testing.assert_close(
        found[1], torch.tensor([[0.0, 0.0, 60.0, 100.0], [170.0, 25.0, 200.0, 75.0]])
    )


def test_parts_that_do_not_fit_say_so():
    matcher = dict(type='HungarianAssigner', match_costs=[dict(type='FocalLossCost', weight=2.0)])
    with pytest.raises(TypeError, match='HungarianAssigner is HungarianMatcher here'):
        MODELS.build(dict(COMPOSED['dfine'], criterion=dict(matcher=matcher)))
    decoder = dict(COMPOSED['rtdetr']['decoder'], type='RTDETRDecoder')
    head = MODELS.build(dict(COMPOSED['dfine'], decoder=decoder))
    with pytest.raises(ValueError, match=r'terms\.loss_fgl=None and loss_ddf=None'):
        head.loss(FEATS, batch())
    terms = dict(loss_fgl=None, loss_ddf=None)
    head = MODELS.build(dict(COMPOSED['dfine'], decoder=decoder, criterion=dict(terms=terms)))
    assert 'd0.loss_iou' in head.loss(FEATS, batch())


# -- Parts that others add: each is one class, and its name in the config. ------------------------


@TASK_UTILS.register_module()
class ThreeQueriesForTheEncoder(HungarianMatcher):
    """Pairs each object with the three cheapest queries of the encoder's set, the last one."""

    def match(self, scores, boxes, targets):
        pairs = super().match(scores[:-1], boxes[:-1], targets)()
        costs = self.costs(scores[-1:], boxes[-1:], targets)[0]
        rows, free = [], torch.ones_like(costs[..., 0], dtype=torch.bool)
        for image, count in enumerate(targets.counts):
            for item in range(count):
                cost = costs[image, :, item].masked_fill(~free[image], torch.inf)
                for query in cost.topk(3, largest=False).indices.tolist():
                    free[image, query] = False
                    rows.append([image, query, item])
        images, queries, objects = torch.tensor(rows).T
        last = torch.full_like(images, len(scores) - 1)
        return Pairs(
            *(
                torch.cat(columns)
                for columns in zip(
                    (pairs.images, pairs.queries, pairs.objects, pairs.sets),
                    (images, queries, objects, last),
                    strict=True,
                )
            )
        )


@TASK_UTILS.register_module()
class FirstQueries:
    """Pairs the objects of an image with its first queries, for each set or for all at once."""

    def __init__(self, for_all=True, share=1):
        self.for_all, self.share = for_all, share

    def match(self, scores, boxes, targets):
        counts = torch.tensor(targets.counts) * self.share
        images = torch.arange(len(counts)).repeat_interleave(counts)
        objects = torch.cat([torch.arange(count) for count in counts])
        pairs = Pairs(images, objects, objects)
        return pairs if self.for_all else pairs.of_each_set(len(scores))


@pytest.mark.parametrize('kind', sorted(COMPOSED))
def test_pairs_may_hold_for_all_sets(kind):
    """With denoising queries, too, whose losses are those of any matching."""
    results = {}
    for for_all in (True, False):
        matcher = dict(type='FirstQueries', for_all=for_all)
        head = built(dict(COMPOSED[kind], criterion=dict(matcher=matcher), denoising={}))
        results[for_all] = head.loss(FEATS, batch())
    assert any(name.startswith('dn.') for name in results[True])
    for name, loss in results[True].items():
        assert loss.item() == pytest.approx(results[False][name].item(), rel=1e-6)


@pytest.mark.parametrize('for_all', [True, False])
@pytest.mark.parametrize('kind', sorted(COMPOSED))
def test_a_matcher_may_find_no_pair(kind, for_all):
    matcher = dict(type='FirstQueries', share=0, for_all=for_all)
    head = built(dict(COMPOSED[kind], criterion=dict(matcher=matcher), denoising={}))
    losses = head.loss(FEATS, batch())
    expected = built(dict(COMPOSED[kind], criterion={}, denoising={})).loss(FEATS, batch())
    for name, loss in losses.items():
        if name.endswith(('bbox', 'iou', 'fgl')) and not name.startswith('dn.'):
            assert loss.item() == 0
        # The distillation weights paired and other queries as the matching queries.
        elif name.startswith('dn.') and not name.endswith('ddf'):
            assert loss.item() == pytest.approx(expected[name].item(), rel=1e-6)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize('kind', sorted(COMPOSED))
def test_a_matcher_of_several_queries_an_object_trains_a_set(kind):
    """Its classification loss, written out; other layers keep their one-to-one matching."""
    matcher = dict(type='ThreeQueriesForTheEncoder')
    config = dict(COMPOSED[kind], criterion=dict(matcher=matcher), denoising=None)
    one_to_one = built(dict(config, criterion=dict())).double()
    head = built(config).double()
    feats, samples = [feat.double() for feat in FEATS], batch((2, 0))
    seen = []
    match = head.criterion.matcher.match
    head.criterion.matcher.match = (
        lambda *inputs: seen.append((inputs, match(*inputs))) or seen[-1][1]
    )
    losses, expected = head.loss(feats, samples), one_to_one.loss(feats, samples)
    for name in ('loss_cls', 'd0.loss_cls'):
        assert losses[name].item() == pytest.approx(expected[name].item(), rel=1e-9)
    [((scores, boxes, targets), pairs)] = seen
    own = pairs.sets == len(scores) - 1
    assert own.sum() == 6
    total = 0.0
    quality = dict(zip(zip(pairs.images[own].tolist(), pairs.queries[own].tolist(), strict=True),
                       pairs.objects[own].tolist(), strict=True))  # fmt: skip
    for image in range(2):
        for query in range(scores.shape[2]):
            item = quality.get((image, query))
            for label in range(3):
                p = scores[-1, image, query, label].sigmoid().item()
                q = 0.0
                if item is not None and label == targets.labels[image, item]:
                    q = plain_iou(boxes[-1, image, query], targets.boxes[image, item]) ** 1.5
                    total -= q * np.log(p) + (1 - q) * np.log(1 - p)
                else:
                    total -= p**1.5 * np.log(1 - p)
    assert losses['enc.loss_cls'].item() == pytest.approx(total / 2, rel=1e-6)
    losses['enc.loss_cls'].backward()
    assert head.query_selection.score.weight.grad.any()


def plain_iou(a, b):
    (ax, ay, aw, ah), (bx, by, bw, bh) = a.tolist(), b.tolist()
    w = min(ax + aw / 2, bx + bw / 2) - max(ax - aw / 2, bx - bw / 2)
    h = min(ay + ah / 2, by + bh / 2) - max(ay - ah / 2, by - bh / 2)
    common = max(w, 0) * max(h, 0)
    return common / (aw * ah + bw * bh - common)


@MODELS.register_module()
class AspectTerm(LossTerm):
    """Difference of the aspect ratios of paired boxes, for the last decoder layer alone."""

    def sets(self, matched):
        return slice(matched.sets.num_layers - 1, matched.sets.num_layers)

    def forward(self, matched):
        sides = matched.boxes[self.sets(matched), :, 2:].unbind(-1)
        target_sides = matched.target_boxes[self.sets(matched), :, 2:].unbind(-1)
        ratios = (width / height for width, height in (sides, target_sides))
        loss = self.loss(*ratios, reduction_override='none')
        return matched.sum_of_pairs(loss, self.sets(matched))


def test_a_loss_term_is_a_class_and_a_line():
    term = dict(type='AspectTerm', pairs='union', loss=dict(type='L1Loss', loss_weight=2.0))
    config = dict(COMPOSED['dfine'], criterion=dict(terms=dict(loss_aspect=term)))
    head = built(config)
    losses = head.loss(FEATS, batch())
    assert [name for name in losses if 'aspect' in name] == ['loss_aspect', 'dn.loss_aspect']
    losses['loss_aspect'].backward()
    assert head.decoder.distribution_heads[-1].layers[-1].weight.grad.any()


@MODELS.register_module()
class EncoderDistance(DistanceTerm):
    """The distance of the encoder's boxes alone, from all own pairs."""

    def sets(self, matched):
        return slice(len(matched.sets.prefixes) - 1, len(matched.sets.prefixes))

    def forward(self, matched):
        pairs = matched.boxes, matched.target_boxes
        loss = self.loss(*pairs, reduction_override='none')
        return matched.sum_of_pairs(loss, self.sets(matched))


def test_a_term_may_have_the_encoders_set_alone():
    """There it is that of all sets; denoising queries have no such set."""
    terms = dict(
        loss_bbox=dict(pairs='own'),
        loss_far=dict(type='EncoderDistance', loss=dict(type='L1Loss', loss_weight=5.0)),
    )
    losses = built(dict(COMPOSED['dfine'], criterion=dict(terms=terms))).loss(FEATS, batch())
    assert [name for name in losses if 'far' in name] == ['enc.loss_far']
    assert losses['enc.loss_far'].item() == pytest.approx(losses['enc.loss_bbox'].item(), rel=1e-6)


@MODELS.register_module()
class ScoreTerm(LossTerm):
    """Distance of all scores of the last layer from 0."""

    sets = AspectTerm.sets

    def forward(self, matched):
        scores = matched.sets.scores[self.sets(matched)]
        self.seen = scores, matched.parts
        loss = self.loss(scores, torch.zeros_like(scores), reduction_override='none')
        return matched.sum_of_queries(loss.sum(-1), self.sets(matched))


@pytest.mark.parametrize('padded', [False, True])
def test_a_term_on_all_queries_sums_denoising_queries_apart(padded):
    term = dict(type='ScoreTerm', loss=dict(type='L1Loss'))
    head = built(dict(COMPOSED['dfine'], criterion=dict(terms=dict(loss_score=term))))
    head.denoising.padded = padded
    losses = head.loss(FEATS, batch((3, 1)))
    scores, (matching, denoising) = head.criterion.terms['loss_score'].seen
    # Groups of three positives and three negatives each; their number doesn't follow from padding.
    num_groups = head.denoising.num_queries // 3
    queries = head.query_selection.num_queries
    assert (scores.shape[2] > queries + 6 * num_groups) == padded
    expected = scores[0, :, -queries:].abs().sum() / 4
    assert losses['loss_score'].item() == pytest.approx(expected.item(), rel=1e-5)
    expected = scores[0, :, : 6 * num_groups].abs().sum() / (4 * num_groups)
    assert losses['dn.loss_score'].item() == pytest.approx(expected.item(), rel=1e-5)
    assert len(denoising.prefixes) == len(matching.prefixes) - 1


@MODELS.register_module()
class SmallTokens(AuxiliaryTerm):
    """Mean square of the encoder's tokens."""

    def forward(self, view):
        return view.tokens.pow(2).mean()


def test_a_term_on_the_encoders_tokens_is_a_class_and_a_line():
    model = tiny_detector(
        neck=True, criterion=dict(terms=dict(loss_small=dict(type='SmallTokens')))
    )
    seen = []
    model.neck.encoder.register_forward_hook(lambda module, inputs, tokens: seen.append(tokens))
    losses = model.loss(*tiny_batch((2, 1)))
    assert losses['loss_small'].item() == pytest.approx(
        seen[0].square().sum().item() / seen[0].numel()
    )
    loss, log = model.parse_losses(losses)
    assert 'loss_small' in log
    loss.backward()
    assert model.neck.encoder.norm2.weight.grad.any()


@MODELS.register_module()
class ScaledDecoder(DFINEDecoder):
    """A decoder with one parameter more, which scales the content of its queries."""

    def __init__(self, *args, scale: float = 2.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, content, *args, **kwargs):
        return super().forward(self.scale * content, *args, **kwargs)


@MODELS.register_module()
class StridesOf16And32(BaseModule):
    """A backbone of two convolutions."""

    def __init__(self, channels: int = 8, init_cfg=None):
        super().__init__(init_cfg)
        self.first = nn.Conv2d(3, channels, 16, stride=16)
        self.second = nn.Conv2d(channels, 2 * channels, 2, stride=2)

    def forward(self, x):
        first = self.first(x)
        return first, self.second(first)


def test_a_decoder_and_a_backbone_are_a_class_and_a_line_each():
    config = Config.fromfile(CONFIGS / 'deim_dfine_n.py').model
    config.backbone = dict(type='StridesOf16And32', channels=8)
    config.neck.in_channels = [8, 16]
    config.bbox_head.num_classes = 3
    config.bbox_head.decoder.update(type='ScaledDecoder', scale=0.5)
    model = MODELS.build(config)
    assert model.bbox_head.decoder.scale == 0.5
    loss, log = model.parse_losses(model.loss(torch.rand(2, 3, 64, 96), batch()))
    loss.backward()
    assert model.backbone.first.weight.grad.any()
    assert model.bbox_head.decoder.scale.grad != 0
    assert log['loss'] == pytest.approx(sum(v for name, v in log.items() if name != 'loss'))
    model.eval()
    assert len(model.predict(torch.rand(2, 3, 64, 96), batch())[0].pred_instances) == 30 * 3


@pytest.mark.parametrize(
    'backbone',
    [
        dict(type='ResNet', depth=18, out_indices=(2, 3)),
        # Their in_channels are those of the last layer that they have built.
        dict(type='MobileNetV2', widen_factor=0.25, out_indices=(4, 6)),
        dict(type='EfficientNet', arch='b0', out_indices=(4, 5)),
        # Its first convolution takes four pixels at once.
        dict(type='CSPDarknet', deepen_factor=0.33, widen_factor=0.125, out_indices=(3, 4)),
        dict(
            type='SwinTransformer', embed_dims=8, depths=[1] * 4, num_heads=[1] * 4,
            out_indices=(2, 3),
        ),
    ],
    ids=lambda backbone: backbone['type'],
)  # fmt: skip
def test_backbones_of_mmdet(backbone):
    images, samples = tiny_batch((2, 0))
    with torch.no_grad():
        levels = MODELS.build(backbone)(images)
    neck = dict(NECK, in_channels=[level.shape[1] for level in levels])
    model = tiny_detector(neck=neck, backbone=backbone)
    assert input_channels(model) == 3
    loss, _ = model.parse_losses(model.loss(images, samples))
    loss.backward()
    assert all(p.grad is not None for p in model.neck.parameters())
    found = model.eval().predict(images, samples, rescale=False)
    assert len(found[0].pred_instances) == 9 * CLASSES


@pytest.mark.parametrize('part', ['bbox_head', 'neck'])
def test_levels_that_nothing_expects_are_counted(part):
    """zip would say that an argument is longer."""
    model = tiny_detector(neck=True)
    owner = getattr(model, part)
    owner.input_proj = owner.input_proj[:1]
    message = f'{type(owner).__name__} gets 2 feature levels, but its in_channels are for 1: give'
    with pytest.raises(ValueError, match=message):
        model.loss(*tiny_batch((1,)))
