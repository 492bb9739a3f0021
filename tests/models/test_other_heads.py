"""Each loss alone in the config of one of mmdet's own detectors: a training step on the CPU."""

from pathlib import Path

from deim_mmdet.models.losses import (
    DecoupledDistillationFocalLoss,
    FineGrainedLocalizationLoss,
    MatchabilityAwareLoss,
)

import mmdet
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData

CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'


def small_batch(size=320):
    sample = DetDataSample(
        metainfo=dict(
            img_shape=(size, size), batch_input_shape=(size, size), pad_shape=(size, size)
        )
    )
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[5.0, 8.0, 40.0, 50.0], [30.0, 20.0, 60.0, 44.0]]),
        labels=torch.tensor([1, 7]),
    )
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
    return torch.rand(1, 3, size, size), [sample]


def build(path, **head):
    cfg = Config.fromfile(CONFIGS / path).model
    cfg.backbone.init_cfg = None
    for key, value in head.items():
        cfg.bbox_head[key] = value
    model = MODELS.build(cfg)
    model.init_weights()
    return model.train()


def watch(monkeypatch, loss):
    """Values that a class of losses returned."""
    values, forward = [], loss.forward

    def watched(self, *args, **kwargs):
        values.append(forward(self, *args, **kwargs))
        return values[-1]

    monkeypatch.setattr(loss, 'forward', watched)
    return values


def total(losses) -> torch.Tensor:
    parts = (v if isinstance(v, list) else [v] for k, v in losses.items() if 'loss' in k)
    return sum(value.sum() for part in parts for value in part)


@pytest.mark.parametrize(
    'path',
    [
        'dino/dino-4scale_r50_8xb2-12e_coco.py',
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        'conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    ],
)
def test_mal_in_detr_heads(monkeypatch, path):
    values = watch(monkeypatch, MatchabilityAwareLoss)
    model = build(path, loss_cls=dict(type='MatchabilityAwareLoss', loss_weight=1.0))
    loss = total(model.loss(*small_batch()))
    loss.backward()
    assert len(values) >= 6
    assert all(value.isfinite() and value > 0 for value in values)


def test_fgl_in_gfl_head(monkeypatch):
    values = watch(monkeypatch, FineGrainedLocalizationLoss)
    model = build('gfl/gfl_r50_fpn_1x_coco.py', loss_dfl=dict(type='FineGrainedLocalizationLoss'))
    total(model.loss(*small_batch())).backward()
    assert values
    assert all(value.isfinite() for value in values)


def test_ddf_in_distillation_head(monkeypatch):
    values = watch(monkeypatch, DecoupledDistillationFocalLoss)
    cfg = Config.fromfile(CONFIGS / 'ld/ld_r18-gflv1-r101_fpn_1x_coco.py').model
    cfg.bbox_head.loss_ld = dict(type='DecoupledDistillationFocalLoss')
    head = MODELS.build(dict(cfg.bbox_head, train_cfg=cfg.train_cfg, test_cfg=cfg.test_cfg)).train()
    feats = [torch.rand(1, 256, n, n) for n in (40, 20, 10, 5, 3)]
    with torch.no_grad():
        scores, distributions = head(feats)
    teacher = (scores, [t + torch.randn_like(t) for t in distributions])
    total(head.loss(feats, teacher, small_batch()[1])).backward()
    assert any(value > 0 for value in values)
