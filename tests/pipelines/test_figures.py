"""Pictures of the report: a film's frames lie side by side, each over its share of the clip."""

import numpy as np
from PIL import Image

from pipelines import figures


def test_frames_of_a_film_are_shown_in_order_over_their_shares() -> None:
    frames = [Image.fromarray(np.full((4, 6, 3), 60 * number, np.uint8)) for number in range(3)]
    _, (axes,) = figures.panels(1)
    figures.film_strip(frames, axes)
    figures.masked_spans([(0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1)], [False, True, False], axes)
    (picture,) = axes.images
    assert picture.get_extent() == [0, 1, 0, 1]
    np.testing.assert_array_equal(np.asarray(picture.get_array())[0, :, 0], np.repeat([0, 60, 120], 6))
    (shade,) = axes.patches
    assert (shade.get_x(), shade.get_width()) == (1 / 3, 1 / 3)
