"""The geodesic tool against a brute-force oracle, and its manners."""

import heapq

import numpy as np
import pytest

from ibisagent.errors import ToolError
from ibisagent.masks import iou
from ibisagent.tools.classical import ClassicalTool, _Graph
from ibisagent.types import Click, Picture, Sample, Tool, ToolRequest


def brute_force(graph: _Graph, seeds: dict[int, float]) -> np.ndarray:
    """Dijkstra with a heap over the same edges."""
    height, width = graph.shape
    edges: dict[int, list[tuple[int, float]]] = {}
    for source, target, cost in zip(graph._sources, graph._targets, graph._costs, strict=True):
        edges.setdefault(int(source), []).append((int(target), float(cost)))
    best = dict(seeds)
    queue = [(cost, node) for node, cost in seeds.items()]
    heapq.heapify(queue)
    while queue:
        cost, node = heapq.heappop(queue)
        if cost > best.get(node, np.inf):
            continue
        for target, step in edges.get(node, []):
            if cost + step < best.get(target, np.inf):
                best[target] = cost + step
                heapq.heappush(queue, (cost + step, target))
    return np.array([best[node] for node in range(height * width)]).reshape(height, width)


def test_distances_are_shortest_paths() -> None:
    pixels = np.random.default_rng(3).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    graph = _Graph(Picture(np.kron(pixels, np.ones((4, 4, 1), np.uint8))))
    for seeds in ({5: 0.0}, {0: 0.35, 700: 0.0, 4000: 0.1}):
        assert np.allclose(graph.distance(seeds), brute_force(graph, seeds), atol=1e-5)


def test_clicks_segment_and_correct(sample: Sample) -> None:
    tool = ClassicalTool()
    assert isinstance(tool, Tool)
    inside, other = Click(0.39, 0.42, True), Click(0.77, 0.69, True)
    [one] = tool.predict([ToolRequest(sample.picture, (inside,))])
    assert iou(one.mask, sample.truth) > 0.9 and 0 < one.score <= 1
    [both] = tool.predict([ToolRequest(sample.picture, (inside, other))])
    assert both.mask[66, 98] and not one.mask[66, 98]
    taken_back = Click(0.77, 0.69, False)
    [again] = tool.predict([ToolRequest(sample.picture, (inside, taken_back))])
    assert not again.mask[66, 98] and iou(again.mask, sample.truth) > 0.9


def test_a_starting_mask_is_kept_where_no_click_speaks_against_it(sample: Sample) -> None:
    tool = ClassicalTool()
    request = ToolRequest(sample.picture, (Click(0.77, 0.69, True),), start_mask=sample.truth)
    [reply] = tool.predict([request])
    assert (reply.mask & sample.truth).sum() > 0.9 * sample.truth.sum() and reply.mask[66, 98]


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (2, 3)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    picture = Picture(np.full((*size, 3), 100, np.uint8))
    [reply] = ClassicalTool().predict([ToolRequest(picture, (Click(0.5, 0.5, True),))])
    assert reply.mask.shape == size


def test_it_takes_no_text(sample: Sample) -> None:
    with pytest.raises(ToolError, match="no text"):
        ClassicalTool().propose([ToolRequest(sample.picture, instruction="the disc")])
