"""Laws of the windows: they cover every pixel, their weights sum to 1, and blending loses and shifts nothing."""

import numpy as np
import pytest

from miso_qgis.engine.manifest import WindowSpec
from miso_qgis.engine.windows import Axis, Blend, taper

SPECS = [
    WindowSpec(256, 10.0, 160, 192, "cosine"),
    WindowSpec(256, 10.0, 160, 224, "cosine"),
    WindowSpec(256, 10.0, 192, 256, "gaussian"),
    WindowSpec(64, 10.0, 40, 48, "gaussian"),
    WindowSpec(64, 10.0, 24, 60, "cosine"),
    WindowSpec(32, 10.0, 32, 32, "cosine"),
]
LENGTHS = [1, 7, 47, 48, 49, 160, 191, 192, 193, 353, 500]


@pytest.mark.parametrize("spec", SPECS)
def test_the_taper_is_positive_symmetric_and_falls_towards_0_at_the_edge(spec):
    weight = taper(spec)
    assert weight.shape == (spec.decode_px,)
    assert (weight > 0).all()
    np.testing.assert_allclose(weight, weight[::-1], atol=1e-12)
    if spec.stride_px < spec.decode_px:
        # Half a pixel from the edge the weight is close to 0, and the step to the next pixel is small.
        assert weight[0] < 0.05
        assert np.abs(np.diff(weight)).max() < 0.11


def test_a_window_with_the_cosine_ramp_and_its_neighbour_sum_to_1_before_normalising():
    # cos^2 + sin^2: at 160 px stride and a 32 px ramp no normalisation is needed inside.
    weight = taper(SPECS[0])
    np.testing.assert_allclose(weight[160:] + weight[:32], 1.0, atol=1e-12)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("length", LENGTHS)
def test_weights_sum_to_1_at_every_pixel_also_when_the_stride_does_not_divide(spec, length):
    axis = Axis.of(length, spec)
    total = np.zeros((axis.count - 1) * axis.stride + axis.decode)
    for k in range(axis.count):
        total[k * axis.stride : k * axis.stride + axis.decode] += axis.weights[k]
    np.testing.assert_allclose(total[:length], 1.0, atol=1e-6)
    assert (total[length:] == 0).all()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("length", LENGTHS)
def test_finished_ranges_join_without_gap_and_end_at_the_length(spec, length):
    axis = Axis.of(length, spec)
    ranges = [axis.finished(k) for k in range(axis.count)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == length
    assert all(before[1] == after[0] for before, after in zip(ranges, ranges[1:]))
    assert all(start < stop for start, stop in ranges)


def test_the_example_of_the_module():
    axis = Axis.of(500, SPECS[0])
    assert [axis.origin(k) for k in range(axis.count)] == [-32, 128, 288]


@pytest.mark.parametrize(("stride", "decode"), [(50, 48), (40, 49), (0, 48)])
def test_windows_that_cannot_cover_the_area_are_refused(stride, decode):
    with pytest.raises(ValueError, match="do not fit"):
        taper(WindowSpec(64, 10.0, stride, decode))


def blend_image(image, spec, block):
    """Cut an image into windows and blend it together again, in blocks of window columns."""
    classes, height, width = image.shape
    rows, columns = Axis.of(height, spec), Axis.of(width, spec)
    margin = spec.size_px
    padded = np.pad(image, ((0, 0), (margin, 2 * margin), (margin, 2 * margin)))
    result = np.full(image.shape, np.nan, np.float32)
    left = None
    for first in range(0, columns.count, block):
        last = min(first + block, columns.count) - 1
        blend = Blend(rows, columns, first, last, classes, left)
        c0, c1 = columns.finished(first)[0], columns.finished(last)[1]
        for row in range(rows.count):
            for column in range(first, last + 1):
                y, x = row * rows.stride + margin, column * columns.stride + margin
                blend.add(row, column, padded[:, y : y + rows.decode, x : x + columns.decode])
            r0, r1 = rows.finished(row)
            result[:, r0:r1, c0:c1] = blend.finish_row(row)
        left = blend
    return result


@pytest.mark.parametrize("spec", SPECS[2:])
@pytest.mark.parametrize("shape", [(2, 130, 211), (1, 5, 300), (1, 90, 3)])
@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_blending_gives_the_image_back_unshifted_whatever_the_blocks(spec, shape, block):
    image = np.random.default_rng(1).random(shape, np.float32)
    np.testing.assert_allclose(blend_image(image, spec, block), image, atol=3e-7)
