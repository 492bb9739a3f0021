"""Detectors with parts that are not this package's, in their fused and exported forms."""

from deim_mmdet.deployment import fuse, fuse_for_export
from deim_mmdet.models.layers.predictions import Predictions

import pytest
import torch
from mmdet.registry import MODELS
from tiny_detectors import tiny_detector
from torch import nn

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@MODELS.register_module()
class PlainDecoder(nn.Module):
    """A decoder as docs/architecture.md says that one is added: no layers, scores and boxes."""

    def __init__(self, num_classes, embed_dims, num_levels):
        super().__init__()
        self.scores = nn.Linear(embed_dims, num_classes)
        self.boxes = nn.Linear(embed_dims, 4)

    def forward(
        self, content, reference_logits, memory, spatial_shapes, attn_mask=None, all_layers=False
    ):
        boxes = (self.boxes(content) + reference_logits).sigmoid()
        return Predictions(scores=self.scores(content)[None], boxes=boxes[None])


def outputs(model):
    with torch.no_grad():
        return model.bbox_head(model.extract_feat(IMAGES))


def assert_same_outputs(fused, model):
    for got, expected in zip(outputs(fused), outputs(model), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize('form', [fuse, fuse_for_export])
def test_a_decoder_stays_as_it_is(form):
    model = tiny_detector(denoising=None, neck=True, decoder=dict(type='PlainDecoder')).eval()
    fused = form(model)
    assert type(fused.bbox_head.decoder) is PlainDecoder
    assert_same_outputs(fused, model)
