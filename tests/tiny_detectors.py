"""Detectors of this package's heads that compute a step in milliseconds, and batches for them."""

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import nn

CLASSES = 3
HEADS = dict(
    DFINEHead=dict(decoder=dict(num_points=[2, 2], num_layers=2, num_heads=2, ffn_channels=16)),
    RTDETRHead=dict(decoder=dict(num_points=[2, 2], num_layers=2, num_heads=2, ffn_channels=16)),
)

NECK = dict(
    type='HybridEncoder',
    in_channels=[16, 16],
    feat_strides=(16, 32),
    out_channels=16,
    ffn_channels=16,
    num_heads=2,
    depth=0.34,
)


@MODELS.register_module()
class TinyBackbone(BaseModule):
    """Two levels of 16 channels, with strides 16 and 32, each by a convolution and a norm."""

    def __init__(self):
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, 16, 3, stride, 1), nn.BatchNorm2d(16), nn.SiLU())
            for channels, stride in ((3, 16), (16, 2))
        )

    def forward(self, x):
        finer = self.levels[0](x)
        return finer, self.levels[1](finer)


def tiny_detector(head='DFINEHead', denoising=10, neck=False, backbone=None, **parts):
    """A detector in training mode, with random parameters: none is zero, so that all matter.

    ``neck`` is True or the neck's config, ``backbone`` the config of another one. Further options
    are parts of the head.
    """
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type='DEIMDetector',
            data_preprocessor=dict(type='DenseO2ODataPreprocessor', samples_on_host=True),
            backbone=backbone or dict(type='TinyBackbone'),
            neck=dict(NECK) if neck is True else neck or None,
            bbox_head=dict(
                type=head,
                num_classes=CLASSES,
                in_channels=[16, 16],
                embed_dims=16,
                query_selection=dict(num_queries=9),
                denoising=denoising and dict(num_queries=denoising),
                **{**HEADS[head], **parts},
            ),
        )
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.03 * torch.randn_like(parameter)
    return model.train()


def tiny_batch(counts, size=64, seed=0, dtype=torch.float32):
    """Images (B, 3, size, size) and samples with so many objects each."""
    random = torch.Generator().manual_seed(seed)
    images = torch.rand(len(counts), 3, size, size, generator=random).to(dtype)
    samples = []
    for count in counts:
        corner = torch.rand(count, 2, generator=random) * 0.6
        extent = 0.1 + torch.rand(count, 2, generator=random) * 0.3
        sample = DetDataSample(metainfo=dict(img_shape=(size, size)))
        sample.gt_instances = InstanceData(
            bboxes=(torch.cat([corner, corner + extent], -1) * size).to(dtype),
            labels=torch.randint(CLASSES, (count,), generator=random),
        )
        samples.append(sample)
    return images, samples
