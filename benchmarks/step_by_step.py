"""Makes training samples of Dense O2O the plain way; the data pipeline is measured against it.

It is written without this package, as a reference implementation would be. Images are PIL images.
One transform comes after the other, each at full size. The collate function makes floats, and mixes
and resizes the whole batch with torch. Nothing is slow on purpose: only Pillow's and torch's
compiled loops touch pixels, and boxes are tensors.

``against='torchvision'`` takes the transforms of single images from torchvision's ``v2`` instead of
from here. Mosaic and collate function stay, as torchvision has none.
"""

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.nn import functional as F

SIZE = 640
TILE = 320
SCALES = [size for size in range(480, 801, 32) if size != SIZE] + [SIZE] * 4
STAGES = ('warm-up', 'dense', 'flat', 'no-augmentation')

# Image in RGB; boxes (N, 4) float32, x1, y1, x2, y2 in pixels, of N objects; labels (N,) int64.
Sample = tuple[Image.Image, Tensor, Tensor]
Transform = Callable[[Image.Image, Tensor, Tensor], Sample]


class StepByStep:
    """Batches of one stage.

    Args:
        files: Path of each image.
        boxes: Objects of each image, (N, 4) float32 x1, y1, x2, y2 in pixels.
        labels: Classes of the objects, (N,) int64.
        against: 'pil' or 'torchvision'.

    Random choices come from Python's ``random`` (torchvision's from torch).
    """

    def __init__(
        self,
        files: Sequence[str],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        against: str = 'pil',
    ) -> None:
        self.files, self.boxes, self.labels = files, boxes, labels
        self.photometric, self.zoom_out, self.crop, self.flip, self.resize = {
            'pil': _pil_transforms,
            'torchvision': _torchvision_transforms,
        }[against]()

    def batch(self, indices: Sequence[int], stage: str) -> tuple[Tensor, list[Tensor]]:
        """Images (B, 3, H, W) float32 RGB in [0, 1] and the boxes of each, in pixels."""
        samples = [self.sample(index, stage) for index in indices]
        return collate(
            [image for image, _, _ in samples], [boxes for _, boxes, _ in samples], stage
        )

    def sample(self, index: int, stage: str) -> Sample:
        """One image of ``SIZE`` x ``SIZE`` with its objects."""
        sample = self.load(index)
        if stage == 'dense' and random.random() < 0.5:
            others = [self.load(random.randrange(len(self.files))) for _ in range(3)]
            sample = self.photometric(*mosaic([sample, *others]))
        elif stage in ('dense', 'flat'):
            sample = self.crop(*self.zoom_out(*self.photometric(*sample)))
        sample = self.flip(*sanitized(*sample))
        return sanitized(*self.resize(*sample))

    def load(self, index: int) -> Sample:
        """The image of an index as it is in its file, with its objects."""
        image = Image.open(self.files[index]).convert('RGB')
        return sanitized(image, self.boxes[index], self.labels[index], least=0)


def sanitized(image: Image.Image, boxes: Tensor, labels: Tensor, least: float = 1) -> Sample:
    """Cut boxes at the border and drop those under ``least`` pixels."""
    boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([*image.size, *image.size]))
    keep = ((boxes[:, 2:] - boxes[:, :2]) >= least).all(dim=1)
    return image, boxes[keep], labels[keep]


def mosaic(samples: Sequence[Sample]) -> Sample:
    """Four images in the quadrants of a canvas, which is then turned, scaled and shifted."""
    tiles = []
    for image, _, _ in samples:
        scale = TILE / min(image.size)
        tiles.append(image.resize([int(side * scale) for side in image.size], Image.BILINEAR))
    width = max(tile.width for tile in tiles)
    height = max(tile.height for tile in tiles)
    canvas = Image.new('RGB', (2 * width, 2 * height))
    boxes = []
    corners = [(0, 0), (width, 0), (0, height), (width, height)]
    for (image, of_image, _), tile, corner in zip(samples, tiles, corners, strict=True):
        canvas.paste(tile, corner)
        scale = torch.tensor([tile.width / image.width, tile.height / image.height] * 2)
        boxes.append(of_image * scale + torch.tensor([*corner, *corner]))
    matrix = draw_affine(*canvas.size)
    turned = hulls(torch.cat(boxes), matrix)
    inverse = torch.linalg.inv(matrix)[:2].flatten().tolist()
    canvas = canvas.transform(canvas.size, Image.AFFINE, inverse, Image.NEAREST)
    return sanitized(canvas, turned, torch.cat([labels for _, _, labels in samples]))


def draw_affine(width: int, height: int) -> Tensor:
    """(3, 3) map about the centre of the canvas."""
    angle = math.radians(random.uniform(-10, 10))
    scale = random.uniform(0.5, 1.5)
    x = width / 2 + random.uniform(-0.1, 0.1) * width
    y = height / 2 + random.uniform(-0.1, 0.1) * height
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    return torch.tensor(
        [
            [cosine, -sine, x - cosine * width / 2 + sine * height / 2],
            [sine, cosine, y - sine * width / 2 - cosine * height / 2],
            [0, 0, 1],
        ]
    )


def hulls(boxes: Tensor, matrix: Tensor) -> Tensor:
    """Upright hulls (N, 4) of the turned corners of boxes (N, 4)."""
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    corners = corners @ matrix[:2, :2].T + matrix[:2, 2]
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)


def collate(
    images: Sequence[Image.Image], boxes: Sequence[Tensor], stage: str
) -> tuple[Tensor, list[Tensor]]:
    """Float tensors, mixup in the dense stage, one size for the whole batch."""
    tensors = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]
    inputs = torch.stack([tensor.contiguous().float().div_(255) for tensor in tensors])
    boxes = list(boxes)
    if stage == 'dense' and random.random() < 0.5:
        share = random.uniform(0.45, 0.55)
        inputs = inputs.roll(1, dims=0).mul_(1 - share).add_(inputs.mul(share))
        boxes = [
            torch.cat([own, other]) for own, other in zip(boxes, boxes[-1:] + boxes, strict=False)
        ]
    if stage != 'no-augmentation':
        size = random.choice(SCALES)
        inputs = F.interpolate(inputs, size=size)
        boxes = [of_image * (size / SIZE) for of_image in boxes]
    return inputs, boxes


def _pil_transforms() -> tuple[Transform, ...]:
    return photometric, zoom_out, iou_crop, flip, resize


def photometric(image: Image.Image, boxes: Tensor, labels: Tensor) -> Sample:
    """Brightness, contrast, saturation, hue, order of the channels; each with probability 0.5."""
    contrast_first = random.random() < 0.5
    contrast = random.random() < 0.5
    if random.random() < 0.5:
        image = ImageEnhance.Brightness(image).enhance(random.uniform(0.875, 1.125))
    if contrast and contrast_first:
        image = ImageEnhance.Contrast(image).enhance(random.uniform(0.5, 1.5))
    if random.random() < 0.5:
        image = ImageEnhance.Color(image).enhance(random.uniform(0.5, 1.5))
    if random.random() < 0.5:
        turn = round(random.uniform(-0.05, 0.05) * 255)
        hue, saturation, value = image.convert('HSV').split()
        hue = Image.fromarray(np.array(hue) + np.uint8(turn % 256))
        image = Image.merge('HSV', (hue, saturation, value)).convert('RGB')
    if contrast and not contrast_first:
        image = ImageEnhance.Contrast(image).enhance(random.uniform(0.5, 1.5))
    if random.random() < 0.5:
        channels = image.split()
        image = Image.merge('RGB', random.sample(channels, 3))
    return image, boxes, labels


def zoom_out(image: Image.Image, boxes: Tensor, labels: Tensor) -> Sample:
    """The image at a random place of a canvas of 1 to 4 times its size, with probability 0.5."""
    if random.random() < 0.5:
        return image, boxes, labels
    ratio = random.uniform(1, 4)
    canvas = Image.new('RGB', (int(image.width * ratio), int(image.height * ratio)))
    left = random.randint(0, canvas.width - image.width)
    top = random.randint(0, canvas.height - image.height)
    canvas.paste(image, (left, top))
    return canvas, boxes + torch.tensor([left, top, left, top]), labels


def iou_crop(image: Image.Image, boxes: Tensor, labels: Tensor) -> Sample:
    """SSD's crop, one trial after the other."""
    if random.random() >= 0.8 or len(boxes) == 0:
        return image, boxes, labels
    while True:
        least = random.choice([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, None])
        if least is None:
            return image, boxes, labels
        for _ in range(40):
            width = int(image.width * random.uniform(0.3, 1))
            height = int(image.height * random.uniform(0.3, 1))
            if not 0.5 <= width / height <= 2:
                continue
            left = int((image.width - width) * random.random())
            top = int((image.height - height) * random.random())
            window = torch.tensor([left, top, left + width, top + height])
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            inside = ((window[:2] < centres) & (centres < window[2:])).all(dim=1)
            if not inside.any():
                continue
            if overlaps(boxes[inside], window).max() < least:
                continue
            cut = boxes[inside] - window[[0, 1, 0, 1]]
            return sanitized(image.crop(window.tolist()), cut, labels[inside], least=0)


def overlaps(boxes: Tensor, window: Tensor) -> Tensor:
    """(N,) intersection over union of boxes (N, 4) and a window (4,)."""
    shared = torch.minimum(boxes[:, 2:], window[2:]) - torch.maximum(boxes[:, :2], window[:2])
    shared = shared.clamp(min=0).prod(dim=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) + (window[2:] - window[:2]).prod()
    return shared / (areas - shared)


def flip(image: Image.Image, boxes: Tensor, labels: Tensor) -> Sample:
    """Flip left and right, with probability 0.5."""
    if random.random() < 0.5:
        return image, boxes, labels
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    boxes = torch.stack([image.width - x2, y1, image.width - x1, y2], dim=1)
    return image.transpose(Image.FLIP_LEFT_RIGHT), boxes, labels


def resize(image: Image.Image, boxes: Tensor, labels: Tensor) -> Sample:
    """Resize to the network's input, with antialiasing."""
    scale = torch.tensor([SIZE / image.width, SIZE / image.height] * 2)
    return image.resize((SIZE, SIZE), Image.BILINEAR), boxes * scale, labels


def _torchvision_transforms() -> tuple[Transform, ...]:
    # Imported only when asked for: torchvision is no requirement of this package.
    from torchvision.transforms import v2
    from torchvision.tv_tensors import BoundingBoxes

    def plain(transform) -> Transform:
        def apply(image: Image.Image, boxes: Tensor, labels: Tensor) -> Sample:
            wrapped = BoundingBoxes(boxes, format='XYXY', canvas_size=image.size[::-1])
            image, target = transform(image, {'boxes': wrapped, 'labels': labels})
            return image, target['boxes'].as_subclass(Tensor), target['labels']

        return apply

    return tuple(
        plain(transform)
        for transform in (
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill=0),
            v2.RandomApply([v2.RandomIoUCrop()], p=0.8),
            v2.RandomHorizontalFlip(),
            v2.Resize((SIZE, SIZE)),
        )
    )
