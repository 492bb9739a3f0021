"""Non-maximum suppression in PyTorch, for an MMCV without operators."""

import torch
from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Indices of the boxes that overlap no better box too much.

    From the best to the worst, a box that is still there removes all worse ones whose IoU with it
    is larger than the threshold. MMCV's compiled operator of this name gives the same, also in the
    order of equal scores, which is that of torch's ``sort``.

    Args:
        boxes: (N, 4) x1, y1, x2, y2, in any unit.
        scores: (N,).
        iou_threshold: The largest IoU of two boxes that both stay.
        offset: 1 where x2 and y2 are the last pixel inside a box, which then is x2 - x1 + 1 wide;
            else 0.

    Returns:
        (K,) int64, from the best box to the worst.
    """
    order = scores.sort(descending=True).indices
    # On the host: the loop asks for each box whether it is still there.
    sorted_boxes = boxes[order].cpu()
    wide = torch.promote_types(boxes.dtype, torch.float32)
    x1, y1, x2, y2 = sorted_boxes.to(wide).unbind(1)
    areas = (x2 - x1 + offset) * (y2 - y1 + offset)
    stays = torch.ones(len(order), dtype=torch.bool)
    for best in range(len(order)):
        if stays[best]:
            worse = slice(best + 1, None)
            width = torch.minimum(x2[best], x2[worse]) - torch.maximum(x1[best], x1[worse])
            height = torch.minimum(y2[best], y2[worse]) - torch.maximum(y1[best], y1[worse])
            overlap = (width + offset).clamp(min=0) * (height + offset).clamp(min=0)
            # Two boxes without area have the IoU NaN, and both stay.
            stays[worse] &= ~(overlap / (areas[best] + areas[worse] - overlap) > iou_threshold)
    return order[stays.to(order.device)]
