"""Losses of the detector as one tensor, and when the host reads them."""

import logging
from types import SimpleNamespace

from deim_mmdet.deployment import fuse
from deim_mmdet.engine import DeferredRuntimeInfoHook
from deim_mmdet.models.detectors import DEIMDetector, LossLog

import pytest
import torch
from golden import build_model
from mmdet.engine.hooks import CheckInvalidLossHook
from mmdet.models import SingleStageDetector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.hooks import CheckpointHook, LoggerHook, RuntimeInfoHook
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData
from tiny_detectors import tiny_batch, tiny_detector
from torch import nn

LOSSES = dict(loss_a=1.5, accuracy=9.0, loss_b=-0.25)


@pytest.mark.parametrize('names', [['loss_a', 'loss_b'], ['loss_a', 'accuracy', 'loss_b']])
def test_losses_are_those_of_mmdets_detector(names):
    """Value, gradient and log; what isn't a loss is only logged."""
    results = []
    for kind in (DEIMDetector, SingleStageDetector):
        weight = torch.tensor(2.0, requires_grad=True)
        loss, log = kind.parse_losses(None, {name: weight * LOSSES[name] for name in names})
        loss.backward()
        results.append((loss, weight.grad, {name: float(value) for name, value in log.items()}))
    (loss, gradient, log), (expected, expected_gradient, expected_log) = results
    assert loss.item() == pytest.approx(expected.item())
    assert gradient.item() == pytest.approx(expected_gradient.item())
    assert list(log) == list(expected_log)
    assert log == pytest.approx(expected_log)


def test_another_head_is_refused():
    head = dict(type='RetinaHead', num_classes=3, in_channels=8)
    with pytest.raises(TypeError, match=r'is a RetinaHead: take .*SingleStageDetector'):
        MODELS.build(dict(type='DEIMDetector', backbone=dict(type='TinyBackbone'), bbox_head=head))


def test_a_fused_model_has_no_losses():
    with pytest.raises(ValueError, match=r'a fused model has no losses: .* before fuse'):
        fuse(tiny_detector().eval()).loss(*tiny_batch((1,)))


def test_a_log_may_be_changed():
    log = LossLog(['loss', 'loss_a', 'loss_b'], torch.tensor([3.0, 1.0, 2.0]))
    del log['loss_a']
    log['time'] = 0.5
    assert dict(log) == dict(loss=3.0, loss_b=2.0, time=0.5)
    assert log.values_on_device.tolist() == [3.0, 2.0, 0.5]


def test_hooks_of_others_find_tensors_in_the_log():
    hook, run = (
        CheckInvalidLossHook(interval=1),
        SimpleNamespace(iter=0, logger=logging.getLogger()),
    )
    hook.after_train_iter(run, 0, outputs=LossLog(['loss'], torch.tensor([3.0])))
    with pytest.raises(AssertionError):
        hook.after_train_iter(run, 0, outputs=LossLog(['loss'], torch.tensor([torch.nan])))


class Reads(torch.Tensor):
    """A tensor that counts how often it, or what is made from it, is read by the host."""

    count = 0

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.tolist, torch.Tensor.item, torch.Tensor.__float__):
            Reads.count += 1
        return super().__torch_function__(function, types, args, kwargs or {})


class Loader(list):
    dataset = None


class Run:
    """As much of a runner as the hook looks at."""

    epoch = iter = 0
    max_epochs = max_iters = 10

    def __init__(self, hooks, iterations):
        self.hooks = hooks
        self.train_dataloader = Loader(range(iterations))
        self.message_hub = MessageHub('deferred')


@pytest.mark.parametrize(
    ('hooks', 'read_after'),
    [
        ([LoggerHook(interval=4)], [3, 7, 9]),
        ([LoggerHook(interval=50)], [9]),
        ([LoggerHook(interval=50), CheckpointHook(interval=3, by_epoch=False)], [2, 5, 8, 9]),
        ([LoggerHook(interval=50), CheckpointHook(interval=3)], [9]),
    ],
)
def test_losses_are_read_when_they_are_logged_or_saved(hooks, read_after):
    """The log holds the same history as with mmengine's hook, which reads in every iteration."""
    Reads.count, reads = 0, []
    # The first batch without objects has a loss less.
    steps = [dict(loss=i + 0.5, **({} if i == 2 else {'dn.loss': 10.0 * i})) for i in range(10)]
    run, hook = Run(hooks, 10), DeferredRuntimeInfoHook()
    hook.before_train(run)
    for index, step in enumerate(steps):
        run.iter, before = index, Reads.count
        values = torch.tensor([*step.values()]).as_subclass(Reads)
        hook.after_train_iter(run, index, outputs=LossLog([*step], values))
        if Reads.count > before:
            assert Reads.count == before + 1
            reads.append(index)
    assert reads == read_after
    plain, theirs = Run(hooks, 10), RuntimeInfoHook()
    plain.message_hub = MessageHub('plain')
    for index, step in enumerate(steps):
        theirs.after_train_iter(plain, index, outputs=step)
    got, expected = run.message_hub.log_scalars, plain.message_hub.log_scalars
    assert got.keys() == expected.keys()
    for name, history in expected.items():
        assert got[name].data[0].tolist() == history.data[0].tolist()


def test_outputs_of_other_detectors_are_logged_at_once():
    run, hook = Run([LoggerHook(interval=4)], 10), DeferredRuntimeInfoHook()
    run.message_hub = MessageHub('others')
    hook.before_train(run)
    hook.after_train_iter(run, 0, outputs=dict(loss=torch.tensor(2.0)))
    assert run.message_hub.get_scalar('train/loss').current() == 2.0


def test_batches_are_counted_as_by_torchs_norms():
    """Each norm in training counts a batch once; statistics are those of torch's norm."""
    detector = build_model('deim_dfine_n').float().train()
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    frozen, cumulative = norms[1].eval(), norms[2]
    cumulative.momentum = None
    plain = nn.BatchNorm2d(norms[0].num_features)
    norms[0].register_forward_hook(lambda norm, inputs, output: plain(*inputs))
    for _ in range(2):
        detector.loss(torch.rand(1, 3, 64, 64), [sample_of_one_object()])
    for norm in norms:
        assert norm.num_batches_tracked == (0 if norm is frozen else 2)
    assert plain.num_batches_tracked == 2
    torch.testing.assert_close(norms[0].running_mean, plain.running_mean)
    torch.testing.assert_close(norms[0].running_var, plain.running_var)


@pytest.mark.parametrize(
    ('build', 'expected'),
    [
        (lambda: build_model('dfine_n'), torch.bfloat16),
        (lambda: build_model('deimv2_s'), torch.bfloat16),
        # A backbone of others may have layers that leave autocast.
        (tiny_detector, torch.float32),
    ],
    ids=['own convolutions', 'own patches', 'of others'],
)
def test_who_gets_images_in_the_type_of_autocast(build, expected):
    preprocess = build().data_preprocessor
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    with torch.autocast('cpu', torch.bfloat16):
        assert preprocess(dict(inputs=[image]))['inputs'].dtype == expected


@pytest.mark.parametrize('name', ['dfine_n', 'rtdetrv2_r18', 'deimv2_s', 'ecdet_s'])
def test_images_in_the_type_of_autocast_change_no_loss(name):
    """The network converts the images first of all, whoever made them."""
    torch.manual_seed(0)
    model = build_model(name).float().train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        model.load_state_dict(state)
        torch.manual_seed(0)
        images = torch.rand(1, 3, 64, 64).to(dtype)
        with torch.autocast('cpu', torch.bfloat16):
            results.append(model.loss(images, [sample_of_one_object()]))
    for key, loss in results[0].items():
        assert torch.equal(loss, results[1][key]), key


def sample_of_one_object():
    sample = DetDataSample(metainfo=dict(img_shape=(64, 64)))
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[8.0, 8.0, 40.0, 32.0]]), labels=torch.zeros(1, dtype=torch.int64)
    )
    return sample
