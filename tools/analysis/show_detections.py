"""Draw a checkpoint's detections on images, as one contact sheet.

python tools/analysis/show_detections.py CONFIG CHECKPOINT DIRECTORY --out detections.png
"""

import argparse
from pathlib import Path

from deim_mmdet.engine.config import load_config
from deim_mmdet.engine.faults import EXPLAINED, MISTAKES, without_traceback
from deim_mmdet.visualization import contact_sheet, draw_tile

import cv2
from mmdet.apis import DetInferencer

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp')


def find_images(directory: Path, number: int) -> list[Path]:
    """Up to ``number`` images of a directory, evenly spread over it.

    Raises:
        FileNotFoundError: It has none, or isn't there.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f'there is no folder {directory}')
    images = sorted(path for path in directory.iterdir() if path.suffix.lower() in SUFFIXES)
    if not images:
        raise FileNotFoundError(f'no images ({", ".join(SUFFIXES)}) in {directory}')
    number = min(number, len(images))
    return [images[i * len(images) // number] for i in range(number)]


@without_traceback(*EXPLAINED)
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', help='config of the model')
    parser.add_argument('checkpoint', help='weights')
    parser.add_argument('directory', type=Path, help='folder of images')
    parser.add_argument('--out', type=Path, default=Path('detections.png'), help='image to write')
    parser.add_argument('--num', type=int, default=18, help='images to show')
    parser.add_argument('--columns', type=int, default=6)
    parser.add_argument('--side', type=int, default=256, help='side of one picture, pixels')
    parser.add_argument('--score-thr', type=float, default=0.4, help='least score to draw')
    parser.add_argument('--device', help='default: a GPU if there is one')
    args = parser.parse_args()

    with without_traceback(*MISTAKES):
        images = find_images(args.directory, args.num)
        config = load_config(args.config)
        inferencer = DetInferencer(config, args.checkpoint, device=args.device, show_progress=False)
    classes = inferencer.visualizer.dataset_meta['classes']
    samples = inferencer(
        [str(path) for path in images],
        batch_size=args.columns,
        no_save_vis=True,
        return_datasamples=True,
    )['predictions']
    tiles = []
    for path, sample in zip(images, samples, strict=True):
        found = sample.pred_instances.cpu().numpy()
        found = found[found.scores >= args.score_thr]
        tiles.append(
            draw_tile(
                cv2.imread(str(path)), found.bboxes, found.labels, classes, found.scores, args.side
            )
        )
    rows = [tiles[i : i + args.columns] for i in range(0, len(tiles), args.columns)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(args.out), contact_sheet(rows)):
        raise SystemExit(f'could not write {args.out}')
    print(args.out)


if __name__ == '__main__':
    main()
