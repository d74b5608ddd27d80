"""Sampling against a plain loop."""

import torch

from detronome.ops.deformable import deformable_sample


def _bilinear(image: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """Read one point of `[D, h, w]` at pixel coordinates (centres at .5), zeros outside."""
    _, height, width = image.shape
    x, y = x * width - 0.5, y * height - 0.5
    left, top = int(torch.tensor(x).floor()), int(torch.tensor(y).floor())
    value = torch.zeros(image.shape[0])
    for i in (left, left + 1):
        for j in (top, top + 1):
            if 0 <= i < width and 0 <= j < height:
                value += image[:, j, i] * (1 - abs(x - i)) * (1 - abs(y - j))
    return value


def test_no_queries() -> None:
    sampled = deformable_sample([torch.rand(2, 3, 4, 5, 6)], torch.rand(2, 3, 0, 2, 2), torch.rand(2, 3, 0, 2), [2])
    assert sampled.shape == (2, 0, 12)


def test_equals_a_loop_over_levels_heads_and_points() -> None:
    torch.manual_seed(0)
    batch, heads, channels, queries, points = 2, 3, 4, 5, 2
    values = [torch.rand(batch, heads, channels, 4, 6), torch.rand(batch, heads, channels, 2, 3)]
    locations = torch.rand(batch, heads, queries, 2, points, 2) * 1.2 - 0.1
    weights = torch.rand(batch, heads, queries, 2, points)
    expected = torch.zeros(batch, queries, heads, channels)
    for b in range(batch):
        for h in range(heads):
            for q in range(queries):
                for level, value in enumerate(values):
                    for p in range(points):
                        x, y = locations[b, h, q, level, p].tolist()
                        expected[b, q, h] += weights[b, h, q, level, p] * _bilinear(value[b, h], x, y)
    sampled = deformable_sample(values, locations.flatten(3, 4), weights.flatten(3), [points, points])
    torch.testing.assert_close(sampled, expected.flatten(2), atol=1e-5, rtol=0)


def test_levels_may_have_different_numbers_of_points() -> None:
    torch.manual_seed(0)
    values = [torch.rand(1, 2, 4, 4, 6), torch.rand(1, 2, 4, 2, 3)]
    locations, weights = torch.rand(1, 2, 5, 4, 2), torch.rand(1, 2, 5, 4)
    parts = [
        deformable_sample([values[0]], locations[:, :, :, :3], weights[..., :3], [3]),
        deformable_sample([values[1]], locations[:, :, :, 3:], weights[..., 3:], [1]),
    ]
    together = deformable_sample(values, locations, weights, [3, 1])
    torch.testing.assert_close(together, parts[0] + parts[1], atol=1e-6, rtol=0)


def test_discrete_reads_one_cell_and_the_border_outside() -> None:
    value = torch.arange(6.0).view(1, 1, 1, 2, 3)  # rows 0 1 2 and 3 4 5
    for (x, y), expected in {(0.4, 0.1): 1.0, (0.4, 0.3): 4.0, (-2.0, 0.0): 0.0, (9.0, 9.0): 5.0}.items():
        location = torch.tensor([x, y]).view(1, 1, 1, 1, 2)
        assert deformable_sample([value], location, torch.ones(1, 1, 1, 1), [1], "discrete").item() == expected
