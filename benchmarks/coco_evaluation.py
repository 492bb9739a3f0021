"""Time of COCO's figures by faster-coco-eval against pycocotools.

    python benchmarks/coco_evaluation.py [--images 87] [--classes 3] [--objects 12] [--repeats 5]

The images are made up: objects of all sizes, and 300 detections an image, of which 7 of 10 have the
class of the object that they are close to. Timed is what ``CheckedCocoMetric`` does once all images
are through the network, in CPU time; the packages take turns, and the figures are medians.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

from deim_mmdet.evaluation import CheckedCocoMetric

import numpy as np
import torch

SIDE, QUERIES = 640, 300


def made_up(images: int, classes: int, objects: int) -> tuple[dict, list[dict]]:
    """An annotation file's content, and the samples of a detector."""
    rng = np.random.default_rng(0)
    content = dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=SIDE, height=SIDE) for i in range(images)],
        annotations=[],
        categories=[dict(id=i + 1, name=str(i)) for i in range(classes)],
    )
    samples = []
    for image in range(images):
        corners = rng.uniform(0, SIDE / 2, (objects, 2))
        sizes = rng.uniform(5, SIDE / 2, (objects, 2))
        labels = rng.integers(classes, size=objects)
        for label, corner, size in zip(labels, corners, sizes, strict=True):
            content['annotations'].append(
                dict(
                    id=len(content['annotations']) + 1,
                    image_id=image,
                    category_id=int(label) + 1,
                    bbox=[*corner.tolist(), *size.tolist()],
                    area=float(size.prod()),
                    iscrowd=0,
                )
            )
        near = np.arange(QUERIES) % objects
        boxes = np.concatenate([corners, corners + sizes], 1)[near] + rng.normal(0, 4, (QUERIES, 4))
        right = rng.random(QUERIES) < 0.7
        found = dict(
            bboxes=torch.tensor(boxes, dtype=torch.float32),
            scores=torch.rand(QUERIES),
            labels=torch.tensor(np.where(right, labels[near], rng.integers(classes, size=QUERIES))),
        )
        samples.append(dict(img_id=image, ori_shape=(SIDE, SIDE), pred_instances=found))
    return content, samples


def seconds(path: Path, samples: list[dict], classes: int, faster: bool) -> tuple[float, float]:
    """CPU time of the figures, and AP."""
    with contextlib.redirect_stdout(io.StringIO()):
        metric = CheckedCocoMetric(ann_file=str(path), faster=faster)
        metric.dataset_meta = dict(classes=[str(i) for i in range(classes)])
        metric.process({}, samples)
        start = time.process_time()
        figures = metric.compute_metrics(metric.results)
        return time.process_time() - start, figures['bbox_mAP']


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, default=87)
    parser.add_argument('--classes', type=int, default=3)
    parser.add_argument('--objects', type=int, default=12, help='objects of an image')
    parser.add_argument('--repeats', type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    content, samples = made_up(args.images, args.classes, args.objects)
    times = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'annotations.json'
        path.write_text(json.dumps(content))
        for _ in range(args.repeats):
            for faster, measured in times.items():
                time_needed, ap = seconds(path, samples, args.classes, faster)
                measured.append(time_needed)
    plain, fast = (statistics.median(measured) for measured in times.values())
    print(
        f'{args.images} images, {args.classes} classes, AP {ap}: pycocotools {plain:.2f} s, '
        f'faster-coco-eval {fast:.2f} s, {plain / fast:.1f} times as fast'
    )


if __name__ == '__main__':
    main()
