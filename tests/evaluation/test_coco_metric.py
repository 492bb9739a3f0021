"""COCO's figures against pycocotools itself, called class by class on the same detections."""

import copy
import json

from deim_mmdet.evaluation import CheckedCocoMetric, coco_metric

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import encode

CLASSES = ('cat', 'dog', 'cow', 'hen')
SIDE = 200


def annotations(ids=(1, 2, 3, 4), order=(0, 1, 2, 3), objects=12, images=6, seed=0):
    """A file of four classes with these ids, its categories listed in this order."""
    rng = np.random.default_rng(seed)
    content = dict(images=[], annotations=[], categories=[])
    for image in range(images):
        content['images'].append(dict(id=image, file_name=f'{image}.jpg', width=SIDE, height=SIDE))
        for _ in range(objects):
            x, y = rng.uniform(0, SIDE / 2, 2)
            w, h = rng.uniform(5, SIDE / 2, 2)
            content['annotations'].append(
                dict(
                    id=len(content['annotations']) + 1,
                    image_id=image,
                    category_id=ids[rng.integers(4)],
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                )
            )
    content['categories'] = [dict(id=ids[i], name=CLASSES[i]) for i in order]
    return content


def detections(content, ids, seed=1, miss=0.3):
    """Detections near the objects, as (image, box, score, name), worse for later classes."""
    rng = np.random.default_rng(seed)
    names = dict(zip(ids, CLASSES, strict=True))
    found = []
    for entry in content['annotations']:
        if rng.random() < miss:
            continue
        x, y, w, h = entry['bbox']
        worse = 1 + 3 * CLASSES.index(names[entry['category_id']])
        x, y = np.array([x, y]) + rng.normal(0, worse, 2)
        found.append(
            (entry['image_id'], [x, y, x + w, y + h], rng.random(), names[entry['category_id']])
        )
    return found


def samples_of(found, order, images=6, shape=(SIDE, SIDE), factor=1.0):
    """Data samples as a detector gives them, with labels in ``order`` of the classes."""
    samples = []
    for image in range(images):
        mine = [entry for entry in found if entry[0] == image]
        samples.append(
            dict(
                img_id=image,
                ori_shape=shape,
                img_path=f'folder/{image}.jpg',
                pred_instances=dict(
                    bboxes=torch.tensor([e[1] for e in mine]).reshape(-1, 4) * factor,
                    scores=torch.tensor([e[2] for e in mine]),
                    labels=torch.tensor([order.index(e[3]) for e in mine], dtype=torch.long),
                ),
            )
        )
    return samples


def evaluate(kind, path, samples, classes=CLASSES, **options):
    metric = kind(ann_file=str(path), **options)
    metric.dataset_meta = dict(classes=classes)
    metric.process({}, copy.deepcopy(samples))
    return metric.compute_metrics(metric.results)


def by_pycocotools(path, found, name=None, limit=100):
    """AP of one class, or of all, by pycocotools alone."""
    truth = COCO(str(path))
    ids = {c['name']: c['id'] for c in truth.dataset['categories']}
    results = truth.loadRes(
        [
            dict(
                image_id=image,
                category_id=ids[label],
                bbox=[x1, y1, x2 - x1, y2 - y1],
                score=score,
            )
            for image, (x1, y1, x2, y2), score, label in found
        ]
    )
    evaluation = COCOeval(truth, results, 'bbox')
    evaluation.params.maxDets = [1, 10, limit]
    if name is not None:
        evaluation.params.catIds = [ids[name]]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval['precision'][:, :, :, 0, -1]
    return precision[precision > -1].mean()


@pytest.fixture(autouse=True, params=['pycocotools', 'faster-coco-eval'])
def package(request, monkeypatch):
    """The package that computes COCO's tables."""
    if request.param == 'pycocotools':
        monkeypatch.setattr(coco_metric, 'faster_evaluation', lambda: None)
    else:
        pytest.importorskip('faster_coco_eval')
    return request.param


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / 'all.json'
        path.write_text(json.dumps(content))
        return path

    return write


def test_usual_file_gives_the_figures_of_mmdet(write):
    content = annotations()
    path = write(content)
    samples = samples_of(detections(content, (1, 2, 3, 4)), CLASSES)
    items = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l', 'AR@100', 'AR@300', 'AR@1000']
    items += ['AR_s@1000', 'AR_m@1000', 'AR_l@1000']
    for options in ({}, dict(classwise=True), dict(metric_items=items)):
        ours = evaluate(CheckedCocoMetric, path, samples, **options)
        theirs = evaluate(CocoMetric, path, samples, **options)
        assert ours == pytest.approx(theirs, abs=1e-9, nan_ok=True)
    assert evaluate(CheckedCocoMetric, path, samples, metric=['bbox', 'proposal']) == (
        evaluate(CocoMetric, path, samples, metric=['bbox', 'proposal'])
    )


@pytest.mark.parametrize('name', ['images', 'categories'])
def test_ids_may_be_strings(write, name):
    content = annotations()
    samples = samples_of(detections(content, (1, 2, 3, 4)), CLASSES)
    expected = evaluate(CheckedCocoMetric, write(content), samples)
    reference = dict(images='image_id', categories='category_id')[name]
    for entry in content[name]:
        entry['id'] = f'no. {entry["id"]}'
    for entry in content['annotations']:
        entry[reference] = f'no. {entry[reference]}'
    for sample in samples if name == 'images' else ():
        sample['img_id'] = f'no. {sample["img_id"]}'
    assert evaluate(CheckedCocoMetric, write(content), samples) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize('ids', [(1, 2, 3, 4), (4, 3, 2, 1), (7, 90, 2, 13)])
@pytest.mark.parametrize('order', [(0, 1, 2, 3), (3, 1, 0, 2)])
@pytest.mark.parametrize('classes', [CLASSES, CLASSES[::-1]])
def test_any_ids_and_order_of_the_file_and_the_model(write, ids, order, classes):
    content = annotations(ids, order)
    path = write(content)
    found = detections(content, ids)
    figures = evaluate(CheckedCocoMetric, path, samples_of(found, classes), classes, classwise=True)
    assert figures['bbox_mAP'] == pytest.approx(by_pycocotools(path, found), abs=5e-4)
    for name in CLASSES:
        expected = by_pycocotools(path, found, name)
        assert figures[f'{name}_precision'] == pytest.approx(expected, abs=5e-4)
    # The classes differ by more than the tolerance, so that names can be told.
    assert len({figures[f'{name}_precision'] for name in CLASSES}) == 4


@pytest.mark.parametrize('nums', [(100, 300, 1000), (1, 10, 500)])
@pytest.mark.parametrize('objects', [100, 200, 400])
def test_crowded_images(write, objects, nums):
    content = annotations(objects=objects, images=1)
    path = write(content)
    found = detections(content, (1, 2, 3, 4), miss=0.0)
    found = [(image, [x, y, x + 1, y + 1], s, n) for (image, (x, y, _, _), s, n) in found]
    for entry, (_, box, _, _) in zip(content['annotations'], found, strict=True):
        entry['bbox'], entry['area'] = [box[0], box[1], 1, 1], 1
    write(content)
    figures = evaluate(
        CheckedCocoMetric, path, samples_of(found, CLASSES, images=1), proposal_nums=nums
    )
    limit = 100 if 100 in nums else 500
    assert figures['bbox_mAP'] == pytest.approx(by_pycocotools(path, found, limit=limit), abs=5e-4)
    if objects <= limit:
        assert figures['bbox_mAP'] == 1.0


def test_class_without_a_category_names_both_lists(write):
    path = write(annotations())
    with pytest.raises(ValueError, match=r"no category 'pig'.*'cat', 'dog'.*'pig'"):
        evaluate(CheckedCocoMetric, path, samples_of([], CLASSES), ('cat', 'dog', 'cow', 'pig'))


def test_boxes_are_scaled_to_the_annotated_size(write, caplog):
    content = annotations()
    path = write(content)
    found = detections(content, (1, 2, 3, 4))
    expected = evaluate(CheckedCocoMetric, path, samples_of(found, CLASSES))
    halved = samples_of(found, CLASSES, shape=(SIDE // 2, SIDE // 2), factor=0.5)
    assert evaluate(CheckedCocoMetric, path, halved) == expected
    assert evaluate(CocoMetric, path, halved)['bbox_mAP'] < 0.1


def test_a_turned_image_is_named_without_a_guess_how_it_was_read(write, monkeypatch):
    content = annotations()
    content['images'][0].update(width=SIDE // 2)
    found = detections(content, (1, 2, 3, 4))
    turned = samples_of(found, CLASSES, shape=(SIDE // 2, SIDE), factor=1.0)
    messages = []
    monkeypatch.setattr(coco_metric, 'print_log', lambda text, **_: messages.append(text))
    evaluate(CheckedCocoMetric, write(content), turned)
    (message,) = (text for text in messages if 'EXIF' in text)
    assert 'color_type of the loader' in message


def test_without_a_detection_all_figures_are_zero(write):
    path = write(annotations())
    figures = evaluate(CheckedCocoMetric, path, samples_of([], CLASSES), classwise=True)
    assert figures['bbox_mAP'] == figures['bbox_mAP_50'] == figures['hen_precision'] == 0


@pytest.mark.parametrize('item', ['mAP_60', 'AR', 'AR@50', 'map'])
def test_unknown_figures_are_refused_before_the_evaluation(write, item):
    with pytest.raises(ValueError, match=item):
        CheckedCocoMetric(ann_file=str(write(annotations())), metric_items=[item])


def crowded_annotations():
    """Objects of all sizes, a fifth of them crowds, with masks of three corners."""
    content = annotations(objects=20)
    for number, entry in enumerate(content['annotations']):
        x, y, w, h = entry['bbox']
        entry['segmentation'] = [[x, y, x + w, y, x + w, y + h]]
        entry['iscrowd'] = int(number % 5 == 0)
    return content


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_both_packages_compute_the_same_tables(write, package, kind):
    if package == 'pycocotools':
        pytest.skip('it is what the other is compared with')
    content = crowded_annotations()
    metric = CheckedCocoMetric(ann_file=str(write(content)))
    metric.cat_ids, metric.img_ids = [1, 2, 3, 4], [0, 1, 2, 3, 4, 5]
    found = [
        # Few different scores, so that many are equal.
        dict(image_id=image, category_id=1 + CLASSES.index(name), score=round(score, 1))
        for image, _, score, name in detections(content, (1, 2, 3, 4))
    ]
    for entry, (_, (x1, y1, x2, y2), _, _) in zip(
        found, detections(content, (1, 2, 3, 4)), strict=True
    ):
        if kind == 'bbox':
            entry['bbox'] = [x1, y1, x2 - x1, y2 - y1]
        else:
            mask = np.zeros((SIDE, SIDE), dtype=np.uint8, order='F')
            mask[max(int(y1), 0) : int(y2), max(int(x1), 0) : int(x2)] = 1
            entry['segmentation'] = encode(mask)
    tables = metric._tables(kind, copy.deepcopy(found))
    metric.faster = False
    expected = metric._tables(kind, found)
    assert expected.precision.max() > 0.1
    for name in ('precision', 'recall'):
        table, other = getattr(tables, name), getattr(expected, name)
        assert table.shape == other.shape
        np.testing.assert_allclose(table, other, rtol=0, atol=1e-6)


def test_the_package_is_chosen(write, package):
    path = str(write(annotations()))
    installed = package != 'pycocotools'
    chosen = {
        name: CheckedCocoMetric(ann_file=path, **options)._evaluation_class().__name__
        for name, options in dict(
            default={}, off=dict(faster=False), several=dict(use_mp_eval=True)
        ).items()
    }
    default = 'COCOeval_faster' if installed else 'COCOeval'
    assert chosen == dict(default=default, off='COCOeval', several='COCOevalMP')
    if installed:
        on = CheckedCocoMetric(ann_file=path, faster=True, use_mp_eval=True)
        assert on._evaluation_class().__name__ == 'COCOeval_faster'
    else:
        with pytest.raises(ImportError, match='pip install faster-coco-eval'):
            CheckedCocoMetric(ann_file=path, faster=True)


@pytest.mark.parametrize('number', [torch.float16, torch.float32, torch.float64])
def test_what_is_fetched_is_what_was_found(write, number):
    """Boxes, scores and labels leave the device together, and become what they were."""
    path = write(annotations())
    samples = samples_of(detections(annotations(), (1, 2, 3, 4))[:20], CLASSES)
    for sample in samples:
        found = sample['pred_instances']
        found['scores'] = found['scores'].to(number)
        found['labels'] += 2**20 + 1
    metrics = [kind(ann_file=str(path)) for kind in (CheckedCocoMetric, CocoMetric)]
    for metric in metrics:
        metric.process({}, copy.deepcopy(samples))
    for (_, ours), (_, theirs) in zip(*(metric.results for metric in metrics), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ('bboxes', 'scores', 'labels'):
            assert ours[name].dtype == theirs[name].dtype
            np.testing.assert_array_equal(ours[name], theirs[name])
