"""Properties of backbone, neck and head that the golden figures don't show."""

import copy
from functools import partial

from deim_mmdet import compat
from deim_mmdet.checkpoints.loading import SCHEME
from deim_mmdet.checkpoints.reverse import to_reference_backbone
from deim_mmdet.deployment.cpu import optimize_for_cpu
from deim_mmdet.models.backbones import PartlyPretrained
from deim_mmdet.models.backbones.hgnetv2 import ARCHS, HGNetv2
from deim_mmdet.models.backbones.resnet_vd import ResNetVd
from deim_mmdet.models.layers.query_selection import make_anchors
from deim_mmdet.models.necks.hybrid_encoder import sine_cosine_position

import pytest
import torch
from golden import build_model
from mmdet.models import ResNetV1d
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData


def samples(counts, size=(64, 96)):
    torch.manual_seed(0)
    result = []
    for n in counts:
        sample = DetDataSample(
            metainfo=dict(img_shape=size, batch_input_shape=size, scale_factor=(0.5, 2.0))
        )
        corner = torch.rand(n, 2) * 30
        boxes = torch.cat([corner, corner + 5 + torch.rand(n, 2) * 20], -1)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.randint(80, (n,)))
        result.append(sample)
    return result


@pytest.fixture(scope='module', params=['deim_dfine_n', 'deim_rtdetrv2_r18', 'deimv2_pico'])
def model(request):
    torch.manual_seed(0)
    return build_model(request.param)


def small_head(num_classes=3, **decoder):
    """An RT-DETR head of two levels of 32 channels."""
    decoder.update(num_points=[2, 2], ffn_channels=16, query_position_channels=[32])
    return MODELS.build(
        dict(
            type='RTDETRHead',
            num_classes=num_classes,
            in_channels=[32] * 2,
            embed_dims=32,
            query_selection=dict(num_queries=7),
            decoder=decoder,
        )
    )


@pytest.mark.parametrize('arch', sorted(ARCHS))
def test_hgnetv2_strides_and_channels(arch):
    stages = range(len(ARCHS[arch].stages))
    feats = HGNetv2(arch, out_indices=stages)(torch.zeros(1, 3, 64, 96))
    for i, (feat, stage) in enumerate(zip(feats, ARCHS[arch].stages, strict=True)):
        assert feat.shape == (1, stage.out_channels, 64 // (4 * 2**i), 96 // (4 * 2**i))


def test_hgnetv2_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="no arch 'B9'"):
        HGNetv2('B9')
    with pytest.raises(ValueError, match='out_indices'):
        HGNetv2('B0', out_indices=(4,))
    with pytest.raises(ValueError, match=r'HGNetv2-Pico must be among 0 … 2'):
        HGNetv2('Pico')


def test_a_small_backbone_starts_from_the_weights_that_fit(tmp_path, monkeypatch):
    """Pico's three stages are those of B0. Atto's third is narrower and has smaller kernels.

    So the three depthwise convolutions and the two of the aggregation with their norms are others.
    """
    logged = []
    monkeypatch.setattr(
        'deim_mmdet.models.backbones.partly_pretrained.print_log',
        lambda line, **_: logged.append(line),
    )
    path = str(tmp_path / 'b0.pth')
    given = HGNetv2('B0', use_lab=True).state_dict()
    torch.save(given, path)
    for arch, own in (('Pico', 0), ('Atto', 3 + 2 * 5)):
        small = HGNetv2(arch, (2,), True, init_cfg=dict(type='PartlyPretrained', checkpoint=path))
        before = {name: value.clone() for name, value in small.state_dict().items()}
        small.init_weights()
        after = small.state_dict()
        fitting = {k for k, v in after.items() if v.shape == given[k].shape}
        assert all(torch.equal(v, (given if k in fitting else before)[k]) for k, v in after.items())
        assert len(after) - len(fitting) == own
        begin = f'HGNetv2: {len(fitting)} of {len(after)} entries are those of {path}'
        end = f', {own} start anew (stages.2.blocks.0.layers.0.conv2.conv.weight, …)' if own else ''
        assert logged.pop() == begin + end
    with pytest.raises(ValueError, match='has no entry of the name and shape of one of Linear'):
        PartlyPretrained(path)(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    'build', [partial(HGNetv2, 'B0'), partial(ResNetVd, 18)], ids=['HGNetv2', 'ResNetVd']
)
def test_frozen_parts_stay(build):
    """Weights of a trainable backbone load into a frozen one, which training leaves alone."""
    trainable = build()
    frozen = build(frozen_stem=True, norm_frozen=True)
    frozen.load_state_dict(trainable.state_dict(), strict=True)
    frozen.train()
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in frozen.parameters() if p.requires_grad], lr=100.0)
    frozen(torch.randn(2, 3, 64, 64))[-1].sum().backward()
    optimizer.step()
    changed = {k for k, v in frozen.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    weights = {k for k, v in before.items() if v.dim() == 4 and not k.startswith('stem')}
    assert changed <= weights
    inputs = torch.randn(2, 3, 64, 64)
    trainable.eval()
    frozen.load_state_dict(trainable.state_dict())
    torch.testing.assert_close(frozen(inputs), trainable(inputs))


@pytest.mark.parametrize('depth', [50, 101])
def test_resnet_vd_of_bottlenecks_is_resnet_v1d(depth):
    torch.manual_seed(0)
    ours, theirs = ResNetVd(depth), ResNetV1d(depth=depth, out_indices=(1, 2, 3))
    ours.eval()
    theirs.eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    image = torch.rand(1, 3, 64, 96)
    torch.testing.assert_close(ours(image), theirs(image), rtol=0, atol=0)


def test_published_resnet_vd_weights_load_as_pretrained(tmp_path):
    """Named as the published files are, and loaded as the configs do."""
    torch.manual_seed(0)
    source = ResNetVd(18).state_dict()
    published = to_reference_backbone(source)
    assert 'conv1.conv1_1.conv.weight' in published
    path = tmp_path / 'ResNet18_vd_pretrained_from_paddle.pth'
    torch.save(published, path)
    model = ResNetVd(18, init_cfg=dict(type='Pretrained', checkpoint=f'{SCHEME}{path}'))
    model.init_weights()
    for name, value in model.state_dict().items():
        assert torch.equal(value, source[name]), name


@pytest.mark.parametrize(('layers', 'eval_layers'), [(3, 3), (3, 1)])
def test_evaluation_stops_after_the_used_layers(layers, eval_layers):
    """The first layers of a longer decoder predict what a decoder of so many layers does."""
    torch.manual_seed(0)
    long = small_head(num_layers=layers, num_eval_layers=eval_layers).eval()
    short = small_head(num_layers=eval_layers).eval()
    for parameter in long.decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    short.load_state_dict(
        {k: v for k, v in long.state_dict().items() if k in short.state_dict()}, strict=True
    )
    feats = [torch.rand(2, 32, 4, 6), torch.rand(2, 32, 2, 3)]
    with torch.no_grad():
        torch.testing.assert_close(long(feats), short(feats), rtol=0, atol=0)


def test_discrete_sampling_trains_all_but_the_offsets():
    head = small_head(num_layers=2, sampling='discrete')
    feats = [torch.rand(1, 32, 4, 6), torch.rand(1, 32, 2, 3)]
    batch = samples((2,))
    batch[0].gt_instances.labels %= 3
    sum(head.loss(feats, batch).values()).backward()
    without = {n for n, p in head.named_parameters() if p.grad is None}
    assert without == {
        f'decoder.layers.{i}.cross_attn.sampling_offsets.{kind}'
        for i in range(2)
        for kind in ('weight', 'bias')
    }


def test_position_tells_the_axes_apart():
    """On a non-square map, rows share the first half of the channels, columns the second."""
    position = sine_cosine_position(3, 5, 8).view(3, 5, 8)
    assert (position[:, :, :4] == position[:, :1, :4]).all()
    assert (position[:, :, 4:] == position[:1, :, 4:]).all()
    assert position[2, 4, 0].item() == pytest.approx(torch.tensor(2.0).sin().item())
    assert position[2, 4, 4].item() == pytest.approx(torch.tensor(4.0).sin().item())


def test_anchors_of_cells():
    logits, valid = make_anchors([(2, 4), (1, 1)], torch.device('cpu'), torch.float64)
    assert logits.shape == (9, 4)
    torch.testing.assert_close(
        logits.sigmoid()[[1, 8]],
        torch.tensor([[0.375, 0.25, 0.05, 0.05], [0.5, 0.5, 0.1, 0.1]], dtype=torch.float64),
    )
    assert valid.all()
    logits, valid = make_anchors([(100, 1)], torch.device('cpu'), torch.float64)
    assert valid[:, 0].nonzero().flatten().tolist() == list(range(1, 99))
    assert torch.isinf(logits[0]).all()


@pytest.mark.parametrize('height', [80, 60])
def test_sizes_not_divisible_by_32_are_refused(model, height):
    """Also where the rounded levels are multiples of each other, as those of 60 pixels."""
    with pytest.raises(ValueError, match=rf'64x{height} pixels is not divisible by 32.*Resize'):
        model.extract_feat(torch.zeros(1, 3, height, 64))


def test_any_size_and_shape_divisible_by_32(model):
    model.eval()
    with torch.no_grad():
        for shape in ((64, 96), (32, 32), (160, 64)):
            logits, boxes = model.bbox_head(model.extract_feat(torch.rand(2, 3, *shape)))
            tokens = sum(shape[0] * shape[1] // s**2 for s in model.neck.feat_strides)
            assert logits.shape == (2, min(300, tokens), 80)
            assert boxes.isfinite().all()


def test_caches_keep_shapes_apart(model):
    """The cached positions and anchors of one shape don't leak into its transpose."""
    model.eval()
    with torch.no_grad():
        inputs = torch.rand(1, 3, 64, 96)
        first = model.bbox_head(model.extract_feat(inputs))
        model.bbox_head(model.extract_feat(inputs.transpose(2, 3)))
        again = model.bbox_head(model.extract_feat(inputs))
    torch.testing.assert_close(first, again, rtol=0, atol=0)


@pytest.mark.parametrize('counts', [(3, 0), (0, 0), (25, 1)])
def test_every_parameter_gets_a_gradient(model, counts):
    """Objects or not, so that no rank of a distributed run waits for another."""
    model.train()
    model.zero_grad()
    losses = model.loss(torch.rand(2, 3, 64, 96), samples(counts))
    total = sum(losses.values())
    assert total.isfinite()
    total.backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert any(key.startswith('dn.') for key in losses) == (sum(counts) > 0)


@pytest.mark.parametrize('counts', [(3, 1), (0, 0)])
def test_loss_is_the_same_in_evaluation(model, counts):
    """Of all decoder layers, for the same noise, where norms use the same statistics."""
    inputs, batch = torch.rand(2, 3, 64, 96), samples(counts)
    results = []
    for training in (True, False):
        model.train(training)
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()
        torch.manual_seed(1)
        results.append(model.loss(inputs, batch))
    in_training, in_evaluation = results
    assert list(in_training) == list(in_evaluation)
    assert 'd0.loss_cls' in in_evaluation
    for term, value in in_training.items():
        assert torch.equal(value, in_evaluation[term]), term


def test_loss_in_evaluation_is_of_all_layers_detections_of_the_used():
    head = small_head(num_classes=80, num_layers=3, num_eval_layers=2).eval()
    for parameter in head.decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    feats = [torch.rand(2, 32, 4, 6), torch.rand(2, 32, 2, 3)]
    assert {'d0.loss_cls', 'd1.loss_cls', 'loss_cls'} <= head.loss(feats, samples((2, 1))).keys()
    with torch.no_grad():
        before = head(feats)
        torch.nn.init.normal_(head.decoder.layers[2].linear1.weight)
        torch.testing.assert_close(head(feats), before, rtol=0, atol=0)


def test_more_objects_than_queries_trains(model):
    model.train()
    losses = model.loss(torch.rand(1, 3, 64, 96), samples((40,)))
    assert sum(losses.values()).isfinite()


def test_detections_in_pixels_of_input_and_original(model):
    model.eval()
    batch = samples((0,))
    with torch.no_grad():
        feats = model.extract_feat(torch.rand(1, 3, 64, 96))
        logits, boxes = model.bbox_head(feats)
        unscaled = model.bbox_head.predict(feats, batch, rescale=False)[0]
        original = model.bbox_head.predict(feats, batch, rescale=True)[0]
    assert (unscaled.scores.diff() <= 0).all()
    best = logits[0].sigmoid().flatten().max()
    assert unscaled.scores[0] == best
    query, label = divmod(int(logits[0].flatten().argmax()), 80)
    assert unscaled.labels[0] == label
    cx, cy, w, h = boxes[0, query].tolist()
    expected = [(cx - w / 2) * 96, (cy - h / 2) * 64, (cx + w / 2) * 96, (cy + h / 2) * 64]
    assert unscaled.bboxes[0].tolist() == pytest.approx(expected, abs=1e-3)
    factor = torch.tensor([0.5, 2.0, 0.5, 2.0])
    torch.testing.assert_close(original.bboxes * factor, unscaled.bboxes)


@pytest.mark.parametrize(
    ('kind', 'change', 'message'),
    [
        ('DFINE', dict(decoder=dict(num_points=[3, 6])), 'num_points of each level'),
        ('DFINE', dict(decoder=dict(reg_max=31)), 'even reg_max'),
        ('DFINE', dict(embed_dims=100), 'embed_dims divisible'),
        ('RTDETR', dict(decoder=dict(num_points=[4])), 'RTDETRDecoder needs num_points of each'),
        ('RTDETR', dict(decoder=dict(num_layers=3, num_eval_layers=4)), 'num_eval_layers=4'),
        ('RTDETR', dict(decoder=dict(sampling='cubic')), r"one of .*'discrete'.*got 'cubic'"),
        ('DFINE', dict(decoder=dict(embed_dims=64)), 'hands embed_dims down to its decoder'),
        ('DFINE', dict(train_cfg=dict(assigner=1)), 'no assigner of model.train_cfg'),
    ],
)
def test_head_refuses_arguments_that_disagree(kind, change, message):
    decoder = {'num_points': [4, 4, 4], **change.pop('decoder', {})}
    cfg = dict(type=f'{kind}Head', num_classes=3, in_channels=[256] * 3, decoder=decoder)
    with pytest.raises(ValueError, match=message):
        MODELS.build({**cfg, **change})


def test_optimized_for_a_cpu_it_computes_the_same(model):
    optimized = optimize_for_cpu(copy.deepcopy(model))
    # Large enough for oneDNN's products.
    images, targets = torch.rand(2, 3, 256, 256), samples([5, 0], (256, 256))
    results, operators = [], []
    for form in (model, optimized):
        form.train().zero_grad()
        torch.manual_seed(1)
        with torch.profiler.profile() as profile:
            losses = form.loss(images, targets)
        sum(losses.values()).backward()
        operators.append({event.key for event in profile.key_averages()})
        # Those of the backbone are sums that rounding moves further.
        gradients = [p.grad.flatten() for p in form.bbox_head.parameters() if p.grad is not None]
        results.append((losses, torch.cat(gradients)))
    (expected, expected_gradient), (losses, gradient) = results
    for term, value in expected.items():
        assert losses[term].item() == pytest.approx(value.item(), rel=1e-3), term
    assert (gradient - expected_gradient).norm() < 1e-2 * expected_gradient.norm()
    assert [any('mkldnn::_linear' in name for name in names) for names in operators] == [
        False,
        compat.has_onednn_linear(),
    ]
    convolutions = [m for m in optimized.modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(c.weight.is_contiguous(memory_format=torch.channels_last) for c in convolutions)
