"""Distillation from a frozen teacher: a small convolution, which stands for any image model."""

import copy
import math
import sys
from types import SimpleNamespace

from deim_mmdet.engine.hooks import DistillationWeightHook
from deim_mmdet.models.losses import EncoderView

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.logging import MessageHub, MMLogger
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, load_state_dict
from tiny_detectors import tiny_batch, tiny_detector
from torch import nn

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
WIDTH = 6


@MODELS.register_module()
class TinyTeacher(nn.Module):
    """Features of patches of 16 pixels: two in each direction for a token of the encoder."""

    calls = 0

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 16, 16)

    def forward(self, images):
        type(self).calls += 1
        assert not self.training
        return self.patches(images)


def criterion(**options):
    settings = dict(weight=3.0, mean=MEAN, std=STD, **options)
    distillation = dict(
        type='TeacherDistillation',
        teacher=dict(type='TinyTeacher'),
        in_channels=16,
        teacher_channels=WIDTH,
        **settings,
    )
    return dict(terms=dict(loss_distill=distillation))


def distilled(**options):
    return tiny_detector(neck=True, criterion=criterion(**options))


def term_of(model):
    return model.bbox_head.criterion.auxiliary_terms['loss_distill']


@pytest.fixture
def model():
    return distilled()


def test_loss_is_the_weighted_mean_of_one_minus_the_cosine(model):
    images, samples = tiny_batch((2, 1), size=64)
    images = images[..., :32]  # 2 x 1 tokens, not square
    for sample in samples:
        sample.set_metainfo(dict(img_shape=(64, 32)))
    with EncoderView.watch(model.neck, images) as view:
        losses = model.loss(images, samples)
    tokens, [teacher], projector = view.tokens, term_of(model)._teacher, term_of(model).projector
    normalised = torch.stack([(images[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)
    total = 0.0
    for image in range(2):
        for row in range(2):
            wanted = torch.zeros(WIDTH)
            for i in range(2):
                for j in range(2):
                    y, x = 32 * row + 16 * i, 16 * j
                    patch = normalised[image, :, y : y + 16, x : x + 16]
                    weight = teacher.patches.weight
                    wanted += ((weight * patch).sum((1, 2, 3)) + teacher.patches.bias) / 4
            ours = projector.weight @ tokens[image, row] + projector.bias
            total += 1 - float(ours @ wanted) / math.sqrt(
                float(ours @ ours) * float(wanted @ wanted)
            )
    assert losses['loss_distill'].item() == pytest.approx(3 * total / 4, rel=1e-5)
    # Nothing else changes.
    plain = tiny_detector(neck=True).loss(images, samples)
    assert losses.keys() == plain.keys() | {'loss_distill'}


def test_training_turns_the_encoder_to_the_teacher(model):
    batch = tiny_batch((3, 1), size=96)
    wrapper = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=4e-3))
    before = len(model.state_dict())
    history = []
    for _ in range(30):
        torch.manual_seed(0)
        loss, log = model.parse_losses(model.loss(*batch))
        history.append(dict(log))
        wrapper.update_params(loss)
    [teacher] = term_of(model)._teacher
    first, last = history[0], history[-1]
    assert last['loss_distill'] < 0.3 * first['loss_distill']
    assert last['loss'] - last['loss_distill'] < first['loss'] - first['loss_distill']
    # The teacher learns nothing, and nobody else knows it.
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert len(model.state_dict()) == before
    added = model.state_dict().keys() - tiny_detector(neck=True).state_dict().keys()
    place = 'bbox_head.criterion.auxiliary_terms.loss_distill'
    assert added == {f'{place}.{n}' for n in ('projector.weight', 'projector.bias', 'weight')}
    assert term_of(copy.deepcopy(model))._teacher == ()


def test_evaluation_needs_no_teacher(model):
    term_of(model).teacher_config = dict(type='NoSuchTeacher')
    images, samples = tiny_batch((2,))
    for sample in samples:
        sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))
    model.eval()
    TinyTeacher.calls = 0
    assert len(model.predict(images, samples)) == 1
    assert TinyTeacher.calls == 0


@pytest.mark.parametrize('load', [nn.Module.load_state_dict, load_state_dict])
def test_the_network_alone_loads_a_distilled_training(model, load):
    """Strictly, as export loads it; other strange names are still refused."""
    plain = tiny_detector(neck=True)
    distilled = {name: value + 1 for name, value in model.state_dict().items()}
    load(plain, distilled, strict=True)
    assert all(torch.equal(value, distilled[name]) for name, value in plain.state_dict().items())
    with pytest.raises(RuntimeError, match=r'(?is)unexpected key.*bbox_head\.odd'):
        load(plain, distilled | {'bbox_head.odd': torch.ones(1)}, strict=True)
    # Its own config still misses what isn't there.
    with pytest.raises(RuntimeError, match=r'(?is)missing key.*loss_distill\.weight'):
        load(model, plain.state_dict(), strict=True)


def test_hidden_tokens_are_refused(model):
    """A CUDA graph and compiled parts don't call the layer's hooks."""
    hidden = copy.deepcopy(model)

    def graphed(detector, images, queries):
        features = hidden.extract_feat(images)
        selected, predictions = hidden.bbox_head.decode(features, queries, all_layers=True)
        return selected.scores, selected.box_logits, predictions

    model.graphed = graphed
    with pytest.raises(ValueError, match='train without --compile and --cuda-graph'):
        model.loss(*tiny_batch((2,)))


@pytest.mark.parametrize(
    ('share', 'weight'),
    [(0.21, 3.0), (0.19, 3.0), (0.25, 2.4), (0.16, 3.75), (0.01, 6.0), (0.9, 1.5), (0.0, 6.0)],
)
def test_weight_follows_the_share(model, share, weight):
    distillation = term_of(distilled(target_share=0.2, tolerance=0.015))
    distillation.follow(share)
    assert distillation.weight.item() == pytest.approx(weight)
    # A resumed run goes on with it.
    term_of(model).load_state_dict(distillation.state_dict())
    assert term_of(model).weight.item() == pytest.approx(weight)


@pytest.mark.parametrize('numbers', [dict(target_share=1.0), dict(tolerance=-0.1)])
def test_bad_numbers(numbers):
    with pytest.raises(ValueError, match='target_share in'):
        distilled(**numbers)


def test_a_neck_without_tokens_is_refused():
    with pytest.raises(ValueError, match='needs a neck with a transformer layer'):
        tiny_detector(criterion=criterion())


def test_a_teacher_sees_all_digits_of_the_images():
    """Autocast would round them before the teacher's own normalisation."""
    backbone = dict(type='HGNetv2', arch='B0', out_indices=(3,))
    for options, expected in ((dict(criterion=criterion()), torch.float32), ({}, torch.bfloat16)):
        preprocess = tiny_detector(neck=True, backbone=backbone, **options).data_preprocessor
        with torch.autocast('cpu', torch.bfloat16):
            batch = preprocess(dict(inputs=[torch.zeros(3, 64, 64, dtype=torch.uint8)]))
        assert batch['inputs'].dtype == expected


def test_a_config_may_take_the_term_of_its_base_back():
    model = tiny_detector(neck=True, criterion=dict(terms=dict(loss_distill=None)))
    assert not model.bbox_head.criterion.auxiliary_terms


def test_another_detector_is_refused(model):
    """It shows no tokens to the criterion: the term must not be left out in silence."""
    images, samples = tiny_batch((2,))
    with pytest.raises(ValueError, match=r'loss_distill, which needs .* type DEIMDetector'):
        model.bbox_head.loss(model.extract_feat(images), samples)


def runner_of(model):
    wrapper = OptimWrapper(
        torch.optim.AdamW(model.parameters(), lr=1e-3), clip_grad=dict(max_norm=0.1)
    )
    loop = EpochBasedTrainLoop.__new__(EpochBasedTrainLoop)
    return SimpleNamespace(
        model=model,
        optim_wrapper=wrapper,
        train_loop=loop,
        logger=MMLogger.get_current_instance(),
        message_hub=MessageHub('distillation'),
    )


def test_hook_measures_the_encoders_share_of_the_gradient():
    model = distilled(target_share=0.5)
    runner, hook = runner_of(model), DistillationWeightHook()
    hook.before_train(runner)
    shares = []
    for seed in range(2):
        loss, _ = model.parse_losses(model.loss(*tiny_batch((2, 2), seed=seed)))
        named = {k: p for k, p in model.named_parameters() if p.requires_grad}
        grads = torch.autograd.grad(loss, [*named.values()], retain_graph=True)
        squares = {
            name: float((grad.double() ** 2).sum()) for name, grad in zip(named, grads, strict=True)
        }
        ours = sum(v for name, v in squares.items() if name.startswith('neck.encoder.'))
        shares.append(math.sqrt(ours / sum(squares.values())))
        runner.optim_wrapper.update_params(loss)
    # A step that is left out.
    runner.optim_wrapper.zero_grad()
    runner.optim_wrapper.step()
    hook.after_train_epoch(runner)
    factor = min(max(0.5 / (sum(shares) / 2), 0.5), 2.0)
    assert term_of(model).weight.item() == pytest.approx(3 * factor, rel=1e-4)
    logged = runner.message_hub.get_scalar('train/distill_weight').data[0]
    assert logged.tolist() == pytest.approx([3, 3 * factor], rel=1e-4)
    hook.after_train(runner)
    assert not runner.optim_wrapper.optimizer._optimizer_step_pre_hooks


def test_hook_needs_a_distillation():
    with pytest.raises(
        ValueError, match=r'one TeacherDistillation among criterion\.terms, found 0'
    ):
        DistillationWeightHook().before_train(runner_of(tiny_detector(neck=True)))


class FakeVit(nn.Module):
    """Gives each patch its own number, after two other tokens."""

    num_prefix_tokens = 2
    patch_embed = SimpleNamespace(patch_size=(16, 16))

    def forward_features(self, images):
        patches = images[:, 0, ::16, ::16].flatten(1)
        return torch.cat([-torch.ones(len(images), 2), patches], dim=1)[..., None].expand(-1, -1, 5)


def test_teachers_of_timm_give_their_patches(monkeypatch):
    asked = []
    fake = SimpleNamespace(create_model=lambda name, **options: asked.append(name) or FakeVit())
    monkeypatch.setitem(sys.modules, 'timm', fake)
    teacher = MODELS.build(dict(type='TimmTeacher', name='vit_small'))
    images = torch.rand(2, 3, 32, 64)
    features = teacher(images)
    assert asked == ['vit_small']
    assert features.shape == (2, 5, 2, 4)
    assert torch.equal(features[:, 3], images[:, 0, ::16, ::16])
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ImportError, match='the teacher vit_small needs timm: pip install timm'):
        MODELS.build(dict(type='TimmTeacher', name='vit_small'))
