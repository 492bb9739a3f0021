"""A report's figures, by a scene whose errors are known, and by pycocotools itself."""

import json
from dataclasses import replace

from deim_mmdet.evaluation.coco_tables import coco_entries
from deim_mmdet.reports.content import analyse
from deim_mmdet.reports.counts import TrainingCounts
from deim_mmdet.reports.curves import curve
from deim_mmdet.reports.errors import find_errors
from deim_mmdet.reports.matching import Boxes, match_across_classes

import numpy as np
import pytest
import scene
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

TRAINING = TrainingCounts(['train.json'], 9, dict(cat=[100.0, 2000.0, 9999.0]))


@pytest.fixture
def analysis(tmp_path):
    return analyse(scene.evaluated(tmp_path), TRAINING)


def random_scene(seed=0, images=8):
    """Objects and detections near them, with misses, wrong classes, crowds and equal scores."""
    rng = np.random.default_rng(seed)
    names, objects, found = ('cat', 'dog', 'hen'), [], []
    for image in range(1, images + 1):
        for _ in range(12):
            x, y, w, h = rng.uniform((0, 0, 5, 5), (100, 100, 130, 130)).tolist()
            name = names[rng.integers(3)]
            objects.append((image, name, (x, y, w, h), int(rng.random() < 0.1)))
            for _ in range(rng.integers(3)):
                shifted = (x + rng.normal(0, 4), y + rng.normal(0, 4), w, h)
                seen = name if rng.random() < 0.7 else names[rng.integers(3)]
                found.append((image, seen, shifted, round(rng.random(), 1)))
    return dict(objects=objects, found=found, images=images, ids=dict(cat=5, dog=2, hen=9))


def by_pycocotools(given):
    entries = coco_entries(given.collected, given.category_ids)
    evaluation = COCOeval(given.annotations, given.annotations.loadRes(entries), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def test_ap_is_that_of_pycocotools(tmp_path):
    given = scene.evaluated(tmp_path, **random_scene())
    content = analyse(given, TRAINING).content
    truth = by_pycocotools(given)
    assert list(content['figures'].values()) == pytest.approx([*truth.stats[:6]], abs=1e-9)
    assert 0.1 < content['figures']['AP'] < 0.9
    table = truth.eval['precision'][:, :, :, 0, -1]
    assert [row['AP'] for row in content['figures_by_iou']] == pytest.approx(
        [*table.mean(axis=(1, 2))], abs=1e-9
    )
    # Classes are in the order of their ids.
    assert [entry['name'] for entry in content['classes']] == ['dog', 'cat', 'hen']
    for label, entry in enumerate(content['classes']):
        assert entry['figures']['AP'] == pytest.approx(table[:, :, label].mean(), abs=1e-9)


def test_matches_are_those_of_pycocotools(tmp_path):
    given = scene.evaluated(tmp_path, **random_scene(1))
    analysis = analyse(given, TRAINING)
    objects, detections = analysis.objects, analysis.detections
    recall = by_pycocotools(given).eval['recall'][0, :, 0, -1]
    for label in range(3):
        lines = curve(detections, objects, label)
        assert lines.recall[-1] == pytest.approx(recall[label])
        # The slow way: count what is right among the detections of each score.
        mine = (detections.label == label) & ~detections.ignored
        for score, precision in zip(lines.score, lines.precision, strict=True):
            counted = mine & (detections.score >= score)
            assert precision == pytest.approx((detections.object[counted] >= 0).mean())


@pytest.mark.parametrize('seed', range(20))
def test_matches_across_classes_are_those_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    truth, found = COCO(), []
    truth.dataset = dict(
        images=[dict(id=image) for image in range(3)], categories=[dict(id=1)], annotations=[]
    )
    for image in range(3):
        for box in rng.uniform((0, 0, 5, 5), (60, 60, 90, 90), (rng.integers(9), 4)):
            # Some objects are annotated twice.
            for _ in range(rng.integers(1, 3)):
                truth.dataset['annotations'].append(
                    dict(
                        id=len(truth.dataset['annotations']) + 1,
                        image_id=image,
                        category_id=1,
                        bbox=box.tolist(),
                        area=box[2] * box[3],
                        iscrowd=0,
                    )
                )
            for shift in rng.normal(0, 6, (rng.integers(4), 2)):
                shifted = [*(box[:2] + shift), *box[2:]]
                score = round(rng.random(), 1)
                found.append(dict(image_id=image, category_id=1, bbox=shifted, score=score))
    rng.shuffle(found)
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(found), 'bbox')
    evaluation.params.iouThrs = np.array([0.5])
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ['all']
    evaluation.evaluate()
    expected = {
        (detection - 1, int(object) - 1)
        for image in evaluation.evalImgs
        if image
        for detection, object in zip(image['dtIds'], image['dtMatches'][0], strict=True)
        if object
    }
    detections, objects = (
        Boxes(
            np.array([entry['image_id'] for entry in entries], int),
            rng.integers(3, size=len(entries)),
            np.array([entry['bbox'] for entry in entries]).reshape(-1, 4),
        )
        for entries in (found, truth.dataset['annotations'])
    )
    scores = np.array([entry['score'] for entry in found])
    pairs = match_across_classes(detections, scores, objects)
    assert len(pairs) == len(expected) > 3
    assert {*pairs} == expected
    assert [*scores[[one for one, _ in pairs]]] == sorted(scores[[d for d, _ in pairs]])[::-1]


@pytest.mark.parametrize('score', [0.0, 0.5, 0.9])
def test_confusion_counts_each_object_and_detection_once(tmp_path, score):
    given = scene.evaluated(tmp_path, **random_scene(2))
    analysis = analyse(given, TRAINING)
    objects, detections = analysis.objects, analysis.detections
    counts = find_errors(detections, objects, 3, score).confusion
    shown = (detections.score >= score) & ~detections.ignored
    for label in range(3):
        wanted = (objects.label == label) & ~objects.crowd
        assert counts[label].sum() == np.count_nonzero(wanted)
        assert counts[:, label].sum() == np.count_nonzero(shown & (detections.label == label))
        assert counts[label, label] == np.count_nonzero(wanted & (objects.found_at >= score))
    assert counts[-1, -1] == 0
    assert counts.sum() - counts[-1].sum() - counts[:, -1].sum() > np.trace(counts) > 0


def test_threshold_has_the_best_f1(analysis):
    # Of the six objects three are found by the five detections from 0.8 on.
    expected = dict(score=0.8, precision=3 / 5, recall=3 / 6, f1=2 * 3 / (5 + 6))
    assert analysis.content['threshold'] == pytest.approx(expected)
    cat, dog = analysis.content['classes']
    assert cat['threshold'] == pytest.approx(dict(score=0.85, precision=0.5, recall=0.5, f1=0.5))
    assert dog['threshold'] == pytest.approx(dict(score=0.8, precision=1, recall=0.5, f1=2 / 3))
    # From 0.5 on there is one more, which is wrong.
    at_half = dict(score=0.5, precision=3 / 6, recall=3 / 6, f1=0.5)
    assert analysis.content['at_half'] == pytest.approx(at_half)


def test_confusion_of_the_scene(analysis):
    confusion = analysis.content['confusion']
    assert confusion['names'] == ['cat', 'dog', 'background']
    assert confusion['score'] == 0.8
    assert confusion['counts'] == [[2, 0, 2], [1, 1, 0], [1, 0, 0]]
    errors = find_errors(analysis.detections, analysis.objects, 2, 0.0)
    assert errors.confusion.tolist() == [[2, 0, 2], [1, 1, 0], [3, 1, 0]]


def test_errors_have_their_kinds_and_the_worst_come_first(analysis):
    detections, objects = analysis.detections, analysis.objects
    errors = find_errors(detections, objects, 2, 0.0)
    scores = {kind: detections.score[each].tolist() for kind, each in errors.kinds.items()}
    assert scores == dict(
        background=[0.95, 0.05], misplaced=[0.6], duplicate=[0.3], confused=[0.87], other=[]
    )
    ((detection, dog),) = errors.confused
    assert (detections.score[detection], objects.id[dog]) == (0.87, 104)
    # A detection of 0.6 is near the one, of 0.85 near the other.
    assert objects.id[errors.missed].tolist() == [105, 103]


def test_other_class_is_told_from_background(tmp_path):
    found = [*scene.FOUND, (1, 'cat', (100, 100, 50, 50), 0.99)]
    errors = analyse(scene.evaluated(tmp_path, found=found), TRAINING).errors
    # The dog was found, so that the cat on it is no confusion.
    assert len(errors.kinds['other']) == len(errors.kinds['confused']) == 1


def test_label_errors_are_what_is_as_sure_as_correct_detections(analysis):
    # Correct cats have 0.85 and 0.9: 0.95 is surer than both, 0.87 than one.
    errors = find_errors(analysis.detections, analysis.objects, 2, 0.0).labels
    assert [error.kind for error in errors] == ['missing', 'twice', 'class']
    assert [error.certainty for error in errors] == pytest.approx([1, 39 / 41, 0.5])
    ids = [analysis.objects.id[error.objects].tolist() for error in errors]
    assert ids == [[], [102, 103], [104]]


def test_each_place_without_annotation_is_named_once(tmp_path):
    found = [*scene.FOUND, (1, 'cat', (152, 10, 30, 30), 0.94), (1, 'dog', (150, 10, 30, 30), 0.93)]
    errors = analyse(scene.evaluated(tmp_path, found=found), TRAINING).errors
    assert [error.kind for error in errors.labels].count('missing') == 1
    assert len(errors.kinds['background']) == 3


def test_objects_are_counted_by_class_and_size(analysis):
    cat, dog = analysis.content['classes']
    assert cat['val'] == dict(all=4, small=1, medium=3, large=0)
    assert dog['val'] == dict(all=2, small=0, medium=2, large=0)
    assert cat['train'] == dict(all=3, small=1, medium=1, large=1)
    assert dog['train'] == dict(all=0, small=0, medium=0, large=0)
    rows = [row for row in analysis.content['input_sizes'] if row['objects']]
    # At half size a cat of 20 pixels, and the others of 40 to 60.
    assert rows == [
        {'from': 8, 'to': 16, 'objects': 1, 'found': 0},
        {'from': 16, 'to': 32, 'objects': 5, 'found': 3},
    ]
    assert analysis.content['objects'] == 6
    assert analysis.content['crowds'] == 1


def test_words_name_what_stands_out(tmp_path, analysis):
    said = '\n'.join(analysis.content['stands_out'])
    ap = analysis.content['classes'][0]['figures']['AP']
    assert f'Class cat: 3 training objects, AP {ap:.3f}.' in said
    assert 'dog: no object to train on' in said
    assert 'Likely label errors: 3' in said
    assert 'score of at least 0.800' in said
    assert 'below 16 px' not in said
    given = scene.evaluated(tmp_path)
    for entry in given.collected:
        entry['factors'] = (0.3, 0.3)
    said = '\n'.join(analyse(given, TRAINING).content['stands_out'])
    # All but a dog of 18 pixels.
    assert '83 % of the objects are below 16 px at this input size (100×100)' in said


@pytest.mark.parametrize(
    'ids', [range(7), range(2**60, 2**60 + 7), [1] * 7], ids=['from 0', 'above 2^53', 'equal']
)
def test_objects_are_told_apart_whatever_their_ids(analysis, tmp_path, ids):
    given = scene.evaluated(tmp_path)
    for entry, id in zip(given.annotations.dataset['annotations'], ids, strict=True):
        entry['id'] = id
    given.annotations.createIndex()
    renumbered = analyse(given, TRAINING)
    for part in ('threshold', 'confusion', 'errors', 'missed', 'input_sizes'):
        assert renumbered.content[part] == analysis.content[part], part
    assert renumbered.objects.id.tolist() == list(ids)
    np.testing.assert_array_equal(renumbered.detections.object, analysis.detections.object)


@pytest.mark.parametrize('found', [[], [(1, 'cat', (150, 150, 9, 9), 0.2)]])
def test_without_a_correct_detection(tmp_path, found):
    content = analyse(scene.evaluated(tmp_path, found=found), TRAINING).content
    assert content['figures']['AP'] == 0
    assert content['missed'] == 6
    assert 'No score threshold: no detection is correct.' in content['stands_out']
    json.dumps(content, allow_nan=False)


def test_training_that_cannot_be_counted_leaves_its_counts_out(tmp_path):
    content = analyse(scene.evaluated(tmp_path), replace(TRAINING, note='it is gone')).content
    assert [entry['train'] for entry in content['classes']] == [None, None]
    assert content['training']['note'] == 'it is gone'
    assert 'train on' not in ''.join(content['stands_out'])
