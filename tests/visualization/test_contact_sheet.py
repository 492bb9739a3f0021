from deim_mmdet.visualization import contact_sheet, draw_tile

import numpy as np
import pytest


def test_boxes_are_scaled_with_the_image():
    image = np.zeros((100, 200, 3), np.uint8)
    tile = draw_tile(image, np.array([[20, 10, 120, 90]]), np.array([0]), side=400)
    assert tile.shape == (400, 400, 3)
    # Twice as large, and 100 pixels down, in the middle of the square.
    drawn = np.argwhere(tile.max(axis=2) > 200)
    top, left = drawn.min(axis=0)
    bottom, right = drawn.max(axis=0)
    assert np.abs(np.array([left, top, right, bottom]) - [40, 120, 240, 280]).max() <= 1


def test_names_stay_inside_and_change_the_picture():
    image = np.zeros((64, 64, 3), np.uint8)
    box, label = np.array([[0, 0, 63, 63]]), np.array([1])
    without = draw_tile(image, box, label, side=128)
    named = draw_tile(image, box, label, ('a', 'b'), np.array([0.5]), side=128)
    assert named.shape == without.shape
    assert (named != without).any()


def test_colours_are_those_given_and_empty_names_are_left_out():
    image = np.zeros((64, 64, 3), np.uint8)
    boxes = np.array([[0, 0, 20, 20], [30, 30, 60, 60]])
    colours = [(1, 200, 3), (4, 5, 250)]
    tile = draw_tile(image, boxes, np.arange(2), ('', ''), side=64, colours=colours)
    drawn = {tuple(colour) for colour in tile.reshape(-1, 3).tolist()}
    assert drawn == {(0, 0, 0), *colours}
    # No name covers the picture: lines alone are drawn.
    assert (tile == 0).all(axis=2).mean() > 0.85


def test_sheet_places_rows_and_captions():
    tiles = [np.full((20, 20, 3), value, np.uint8) for value in (10, 20, 30)]
    plain = contact_sheet([tiles[:2], tiles[2:]])
    captioned = contact_sheet([tiles[:2], tiles[2:]], ['first', 'second'])
    assert captioned.shape[0] > plain.shape[0]
    assert captioned.shape[1] == plain.shape[1]
    for sheet in (plain, captioned):
        for value in (10, 20, 30):
            assert (sheet == value).all(axis=2).sum() >= 400


def test_refuses_an_empty_sheet_and_captions_that_do_not_fit():
    with pytest.raises(ValueError, match='at least one tile'):
        contact_sheet([[]])
    with pytest.raises(ValueError, match='2 captions for 1 rows'):
        contact_sheet([[np.zeros((4, 4, 3), np.uint8)]], ['a', 'b'])
