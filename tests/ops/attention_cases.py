"""Inputs of deformable attention, and its definition as a loop over samples."""

import numpy as np
import torch

# Levels of odd sizes, a single pixel among them, with points of their own.
LEVELS = [
    ([(5, 7), (3, 2), (1, 1)], [3, 6, 3]),
    ([(4, 4), (2, 3)], [6, 6]),
    ([(1, 1)], [1]),
    ([(2, 9), (6, 1)], [33, 37]),
]


def slow_deformable_attention(value, shapes, locations, weights, num_points, method='default'):
    """Eq. 3 of Deformable DETR, one sample after another."""
    batch, _, heads, channels = value.shape
    out = np.zeros((batch, locations.shape[1], heads, channels))
    level_of_point = np.repeat(np.arange(len(shapes)), num_points)
    starts = np.cumsum([0, *(h * w for h, w in shapes)])
    for b, q, head, point in np.ndindex(*locations.shape[:4]):
        level = level_of_point[point]
        height, width = shapes[level]
        for row, column, share in pixels_around(
            locations[b, q, head, point], height, width, method
        ):
            if 0 <= row < height and 0 <= column < width:
                sample = value[b, starts[level] + row * width + column, head]
                out[b, q, head] += weights[b, q, head, point] * share * sample
    return out.reshape(batch, -1, heads * channels)


def pixels_around(location, height, width, method):
    x, y = location * (width, height)
    if method == 'discrete':
        row = min(max(int(np.floor(y + 0.5)), 0), height - 1)
        column = min(max(int(np.floor(x + 0.5)), 0), width - 1)
        return [(row, column, 1)]
    x, y = x - 0.5, y - 0.5
    return [
        (row, column, (1 - abs(y - row)) * (1 - abs(x - column)))
        for row in (int(np.floor(y)), int(np.floor(y)) + 1)
        for column in (int(np.floor(x)), int(np.floor(x)) + 1)
    ]


def random_inputs(batch, heads, channels, shapes, num_points, queries=5):
    """Value, locations and weights, float64."""
    tokens = sum(h * w for h, w in shapes)
    value = torch.randn(batch, tokens, heads, channels, dtype=torch.float64)
    # A share of the points lies outside, and some exactly on the border.
    locations = torch.rand(batch, queries, heads, sum(num_points), 2, dtype=torch.float64)
    locations = locations * 1.6 - 0.3
    locations[:, 0, 0, 0] = 0
    locations[:, 0, 0, 1:] = 1
    weights = torch.rand(batch, queries, heads, sum(num_points), dtype=torch.float64)
    return value, locations, weights


def away_from_kinks(locations):
    """Locations where bilinear sampling has a derivative, for levels of 1, 2, 3, 4, 6 or 12."""
    return (locations * 12).floor() / 12 + 0.031
