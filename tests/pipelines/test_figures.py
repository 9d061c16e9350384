"""Pictures of the report: frames of a film over their shares of the clip, and curves that can be told apart."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
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


def test_every_line_of_many_looks_different(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame(
        {"method": np.repeat([f"m{i:02}" for i in range(20)], 2), "x": [0, 1] * 20, "y": np.arange(40.0)}
    )
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    figures.curves(frame, "x", "y", "x", tmp_path / "curves.png")
    lines = drawn[0].axes[0].get_lines()
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}) == 20
    assert len(drawn[0].legends[0].get_texts()) == 20
