import os
import signal
import time
from collections import Counter
from itertools import permutations

from deim_mmdet.models.task_modules import (
    HungarianMatcher,
    Pairs,
    ScoreOverlapMatcher,
    Targets,
    denoising_pairs,
    union_set,
)
from deim_mmdet.models.task_modules.hungarian_matcher import OneToOneMatcher
from deim_mmdet.models.task_modules.pairs import to_device

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment


def random_case(num_sets=3, queries=6, counts=(2, 0, 3), classes=4):
    torch.manual_seed(0)
    scores = torch.randn(num_sets, len(counts), queries, classes)
    boxes = torch.rand(num_sets, len(counts), queries, 4) * 0.4 + 0.3
    # D-FINE may predict boxes that are turned inside out, along one side or both.
    boxes[0, :, 0, 2:] *= -1
    boxes[0, :, 1, 3] *= -1
    targets = Targets.from_lists(
        [torch.randint(classes, (n,)) for n in counts],
        [torch.rand(n, 4) * 0.4 + 0.3 for n in counts],
    )
    return scores, boxes, targets


def table(pairs, shape):
    """Query of each object (sets, images, objects); -1 where it has none."""
    matched = np.full(shape, -1)
    for row in zip(pairs.sets, pairs.images, pairs.objects, pairs.queries, strict=True):
        *place, query = map(int, row)
        assert matched[tuple(place)] == -1
        matched[tuple(place)] = query
    return matched


def pairs_in(matched):
    """The opposite of :func:`table`."""
    sets, images, objects = (torch.from_numpy(index) for index in (matched >= 0).nonzero())
    return Pairs(images, torch.from_numpy(matched)[sets, images, objects], objects, sets)


def slow_cost(score, box, label, target):
    """Cost of one query and one object, from the definition."""
    p = 1 / (1 + np.exp(-score[label]))
    focal = 0.25 * (1 - p) ** 2 * -np.log(p + 1e-8) - 0.75 * p**2 * -np.log(1 - p + 1e-8)
    width, height = max(box[2], 0), max(box[3], 0)
    ax1, ay1 = box[0] - width / 2, box[1] - height / 2
    ax2, ay2 = box[0] + width / 2, box[1] + height / 2
    (bx1, by1), (bx2, by2) = target[:2] - target[2:] / 2, target[:2] + target[2:] / 2
    inter = max(min(ax2, bx2) - max(ax1, bx1), 0) * max(min(ay2, by2) - max(ay1, by1), 0)
    union = width * height + target[2] * target[3] - inter
    hull = (max(ax2, bx2) - min(ax1, bx1)) * (max(ay2, by2) - min(ay1, by1))
    giou = inter / union - (hull - union) / hull
    return 2 * focal + 5 * np.abs(box - target).sum() - 2 * giou


def test_every_matching_is_the_cheapest():
    """Against an exhaustive search over all assignments."""
    scores, boxes, targets = random_case()
    matched = table(HungarianMatcher().match(scores, boxes, targets)(), (3, 3, 3))
    costs = HungarianMatcher().costs(scores, boxes, targets).numpy()
    for s in range(3):
        for image, count in enumerate(targets.counts):
            cost = np.array(
                [
                    [
                        slow_cost(
                            scores[s, image, q].double().numpy(),
                            boxes[s, image, q].double().numpy(),
                            int(targets.labels[image, o]),
                            targets.boxes[image, o].double().numpy(),
                        )
                        for o in range(count)
                    ]
                    for q in range(6)
                ]
            ).reshape(6, count)
            np.testing.assert_allclose(costs[s, image, :, :count], cost, rtol=1e-4, atol=1e-5)
            best = min(
                permutations(range(6), count),
                key=lambda p: cost[list(p), range(len(p))].sum(),
            )
            assert tuple(matched[s, image, :count]) == best
            assert (matched[s, image, count:] == -1).all()


def test_no_object_and_non_finite_scores():
    scores, boxes, targets = random_case(counts=(0, 0))
    assert len(HungarianMatcher().match(scores, boxes, targets)()) == 0
    scores, boxes, targets = random_case()
    scores[0, 0, 0] = torch.nan
    matched = table(HungarianMatcher().match(scores, boxes, targets)(), (3, 3, 3))
    assert (matched[:, 0, :2] >= 0).all()


def test_more_objects_than_queries():
    scores, boxes, targets = random_case(queries=2, counts=(5,))
    matched = table(HungarianMatcher().match(scores, boxes, targets)(), (3, 1, 5))
    assert ((matched >= 0).sum(-1) == 2).all()


def test_union_set_against_counting():
    rng = np.random.default_rng(0)
    matched = np.stack(
        [
            [rng.permutation(8)[:5], [*rng.permutation(8)[:3], -1, -1]]
            for _ in range(4)
        ]
    )  # fmt: skip
    pairs = union_set(pairs_in(matched), 8)
    found = list(
        zip(pairs.images.tolist(), pairs.queries.tolist(), pairs.objects.tolist(), strict=True)
    )
    expected = []
    for image in range(2):
        counts = Counter(
            (int(q), o) for s in range(4) for o, q in enumerate(matched[s, image]) if q >= 0
        )
        for query in sorted({q for q, _ in counts}):
            objects = {o: n for (q, o), n in counts.items() if q == query}
            most = max(objects.values())
            expected.append((image, query, min(o for o, n in objects.items() if n == most)))
    assert found == expected


def test_union_set_of_nothing():
    empty = torch.zeros(0, dtype=torch.int64)
    assert len(union_set(Pairs(empty, empty, empty, empty), 8)) == 0


def test_denoising_pairs_are_the_positives_of_each_group():
    targets = Targets.from_lists(
        [torch.zeros(n, dtype=torch.int64) for n in (2, 0, 3)],
        [torch.zeros(n, 4) for n in (2, 0, 3)],
    )
    pairs = denoising_pairs(targets, 2)
    columns = pairs.images, pairs.queries, pairs.objects
    rows = {tuple(map(int, row)) for row in zip(*columns, strict=True)}
    # Groups of three positives and three negatives each.
    assert rows == {
        (image, 6 * group + item, item)
        for image, count in ((0, 2), (2, 3))
        for item in range(count)
        for group in range(2)
    }
    assert len(pairs) == len(rows)


def test_pairs_become_places_in_flattened_tensors():
    images, queries, objects, sets = 3, 7, 4, 2
    values = torch.arange(sets * images * queries).view(sets, images, queries)
    of_objects = torch.arange(images * objects).view(images, objects)
    draw = np.random.default_rng(0)

    def pairs(count, *more):
        limits = (images, queries, objects, *more)
        return Pairs(*(torch.from_numpy(draw.integers(n, size=count)) for n in limits))

    own, none, union, noised = pairs(5, sets), pairs(0), pairs(4), pairs(3)
    lists = [[own, noised.of_each_set(sets)], [none], [union, noised.from_query(0)]]
    shape = images, queries, objects
    moved, counts = to_device(lists, [7, 0, 3], shape, torch.device('cpu'))
    assert counts.tolist() == [7, 0, 3]
    assert [len(places) for places in moved] == [5 + 3 * sets, 0, 4 + 3]
    expected = [values[own.sets, own.images, own.queries]]
    expected += [values[i, noised.images, noised.queries] for i in range(sets)]
    assert torch.equal(values.flatten()[moved[0].queries], torch.cat(expected))
    assert torch.equal(moved[0].sets, torch.cat([own.sets, torch.tensor([0, 0, 0, 1, 1, 1])]))
    assert moved[1].sets is None
    assert moved[2].sets is None
    expected = torch.cat([values[0, part.images, part.queries] for part in (union, noised)])
    assert torch.equal(values[0].flatten()[moved[2].queries], expected)
    expected = torch.cat([of_objects[part.images, part.objects] for part in (union, noised)])
    assert torch.equal(of_objects.flatten()[moved[2].objects], expected)


def test_other_queries_may_come_first():
    queries = torch.tensor([0, 3, 1])
    pairs = Pairs(queries, queries, queries).from_query(5)
    assert pairs.queries.tolist() == [5, 8, 6]
    assert pairs.images.tolist() == pairs.objects.tolist() == [0, 3, 1]


def slow_overlap(box, target):
    """IoU of two (cx, cy, w, h) boxes, a negative size being 0."""
    sides = []
    for centre, size in ((0, 2), (1, 3)):
        length = max(box[size], 0)
        low = max(box[centre] - length / 2, target[centre] - target[size] / 2)
        high = min(box[centre] + length / 2, target[centre] + target[size] / 2)
        sides.append(max(high - low, 0))
    inter = sides[0] * sides[1]
    return inter / (max(box[2], 0) * max(box[3], 0) + target[2] * target[3] - inter)


def test_late_matching_is_the_cheapest_by_score_and_overlap():
    """Against scipy on costs written down pair by pair."""
    scores, boxes, targets = random_case(num_sets=4, queries=40, counts=(6, 0, 9))
    matcher = ScoreOverlapMatcher()
    matched = table(matcher.match(scores, boxes, targets)(), (4, 3, 9))
    costs = matcher.costs(scores, boxes, targets)
    for s, image in np.ndindex(4, 3):
        count = targets.counts[image]
        expected = np.zeros((40, count))
        for q, o in np.ndindex(expected.shape):
            p = 1 / (1 + np.exp(-scores[s, image, q, targets.labels[image, o]].item()))
            overlap = slow_overlap(boxes[s, image, q].tolist(), targets.boxes[image, o].tolist())
            expected[q, o] = -p * overlap**4
        np.testing.assert_allclose(costs[s, image, :, :count], expected, rtol=1e-4, atol=1e-7)
        queries, objects = linear_sum_assignment(expected)
        assert matched[s, image, objects].tolist() == queries.tolist()
    # The box that fits best wins over the higher score, as the IoU counts by its fourth power.
    targets = Targets.from_lists([torch.tensor([1])], [torch.tensor([[0.5, 0.5, 0.4, 0.4]])])
    scores = torch.tensor([[[[0.0, 4.0], [9.0, 0.0], [9.0, 4.0]]]])
    boxes = torch.tensor([[[[0.5, 0.5, 0.2, 0.4], [0.5, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]]]])
    assert table(matcher.match(scores, boxes, targets)(), (1, 1, 1)) == 1
    assert table(HungarianMatcher().match(scores, boxes, targets)(), (1, 1, 1)) == 0


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system has no fork')
@pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork:DeprecationWarning')
def test_a_forked_process_matches_with_threads_of_its_own():
    torch.manual_seed(0)
    labels, boxes = [torch.arange(3)] * 40, [torch.rand(3, 4) * 0.4 + 0.1] * 40
    targets = Targets.from_lists(labels, boxes)
    scores, places = torch.randn(2, 40, 10, 4), torch.rand(2, 40, 10, 4)
    costs = HungarianMatcher().costs(scores, places, targets).permute(1, 0, 3, 2).double().numpy()
    expected = OneToOneMatcher._cheapest(targets, 2, [*costs], threads=2)
    child = os.fork()
    if child == 0:
        # Nothing of torch, whose own threads a fork doesn't have either.
        found = OneToOneMatcher._cheapest(targets, 2, [*costs], threads=2)
        os._exit(0 if found.queries.numpy().tolist() == expected.queries.tolist() else 3)
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail('the child waits for ever')
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize('threads', [1, 2, 4])
def test_threads_find_the_pairs_of_a_plain_loop(threads):
    torch.manual_seed(1)
    counts = [0, 3, 12, 1] * 6
    targets = Targets.from_lists(
        [torch.randint(4, (n,)) for n in counts], [torch.rand(n, 4) * 0.4 + 0.1 for n in counts]
    )
    scores, boxes = torch.randn(3, len(counts), 8, 4), torch.rand(3, len(counts), 8, 4)
    costs = HungarianMatcher().costs(scores, boxes, targets).numpy()
    by_image = [*costs.transpose(1, 0, 3, 2)]
    found = OneToOneMatcher._cheapest(targets, 3, by_image, threads)
    expected = set()
    for place, image in np.ndindex(costs.shape[:2]):
        rows, columns = linear_sum_assignment(costs[place, image, :, : counts[image]])
        expected |= {(place, image, int(q), int(o)) for q, o in zip(rows, columns, strict=True)}
    fields = (found.sets, found.images, found.queries, found.objects)
    assert set(zip(*(field.tolist() for field in fields), strict=True)) == expected
    assert len(found) == len(expected)
