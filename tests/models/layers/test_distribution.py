from deim_mmdet.models.layers.distribution import (
    bin_probabilities,
    boxes_to_bins,
    distances_to_boxes,
    expected_distances,
    weighting_function,
)

import pytest
import torch

UP, SCALE = torch.tensor([0.5]), torch.tensor([4.0])


def test_bin_distances_follow_the_formula():
    bin_distances = weighting_function(32, UP, SCALE)
    a = 0.5 * 4
    t = (a + 1) ** (2 / 30)
    positive = [t**n - 1 for n in range(1, 16)]
    expected = [-2 * a, *(-p for p in reversed(positive)), 0, *positive, 2 * a]
    torch.testing.assert_close(bin_distances, torch.tensor(expected))


def test_steepness_changes_the_steps_and_not_the_reach():
    """The outermost bins lie one side of the reference box away."""
    gentle, steep = (weighting_function(32, UP, scale) / scale for scale in (SCALE, 2 * SCALE))
    for table in (gentle, steep):
        assert table[[0, -1]].tolist() == pytest.approx([-1, 1])
    finer = steep.diff() < gentle.diff()
    assert finer[[15, 16]].all()
    assert not finer[[1, -2]].any()


def test_uniform_distribution_gives_the_reference_box():
    """W is odd, so the mean of a uniform distribution is 0 and the sides stay."""
    references = torch.tensor([[0.4, 0.5, 0.2, 0.3]])
    bin_distances = weighting_function(32, UP, SCALE)
    distances = expected_distances(bin_probabilities(torch.zeros(1, 4 * 33)), bin_distances)
    torch.testing.assert_close(distances_to_boxes(references, distances, SCALE), references)


def test_boxes_to_bins_inverts_distances_to_boxes():
    """The distance between the two bins, by their weights, leads back to the box."""
    torch.manual_seed(0)
    references = torch.rand(200, 4) * 0.3 + 0.3
    boxes = references + (torch.rand(200, 4) - 0.5) * 0.2
    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], -1)
    bin_distances = weighting_function(32, UP, SCALE)
    lower, upper_weight = boxes_to_bins(references, corners, bin_distances, SCALE)
    below, above = bin_distances[lower], bin_distances[lower + 1]
    distances = below * (1 - upper_weight) + above * upper_weight
    torch.testing.assert_close(
        distances_to_boxes(references, distances, SCALE), boxes, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
    ('box', 'lower', 'weight'), [((0.5, 0.5, 0.5, 0.5), 0, 0.0), ((-9, -9, 9, 9), 31, 1.0)]
)
def test_targets_beyond_the_table_get_its_ends(box, lower, weight):
    # Sides of the point box lie 2 units inside the reference box, which scale 0.4 makes -20.
    bin_distances = weighting_function(32, UP, SCALE) * 0.1
    references = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    boxes = torch.tensor([box]).float()
    bins, upper = boxes_to_bins(references, boxes, bin_distances, SCALE)
    assert bins.tolist() == [[lower] * 4]
    assert upper.tolist() == [[weight] * 4]
