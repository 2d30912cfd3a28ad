"""A weight-free tool: geodesic distance to positive against negative evidence.

The picture is a graph over a small grid; a step costs little within a region and much across an
edge (Bai and Sapiro, "A geodesic framework for fast interactive image and video segmentation and
matting", ICCV 2007). A pixel belongs to the mask where the positive evidence is nearer. Shortest
paths are scipy's Dijkstra. The honest baseline, and the tool of the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from ibisagent.actions import click_pixel
from ibisagent.errors import ToolError
from ibisagent.tools.cache import EmbeddingCache
from ibisagent.types import Logits, Picture, Prompt, ToolReply, ToolRequest

GRID = 160  # longest side of the graph
STEP = 0.02  # cost of one step without contrast; contrast costs up to 1
BORDER = 0.35  # how far away, at least, the picture's border counts as negative evidence
PRIOR = 0.5  # how far away the starting mask counts as evidence
CACHE_BYTES = 64 << 20


class ClassicalTool:
    """Geodesic segmentation from clicks and, where given, a starting mask."""

    name = "classical"
    prompts: frozenset[Prompt] = frozenset({"point", "mask"})

    def __init__(self) -> None:
        self._graphs: EmbeddingCache[_Graph] = EmbeddingCache(CACHE_BYTES)

    def set_image(self, pictures: Sequence[Picture]) -> None:
        for picture in pictures:
            self._graph(picture)

    def predict(self, requests: Sequence[ToolRequest]) -> list[ToolReply]:
        return [self._predict(request) for request in requests]

    def propose(self, requests: Sequence[ToolRequest]) -> list[ToolReply]:
        raise ToolError("classical takes no text", fix="use --start none")

    def fingerprint(self) -> dict[str, Any]:
        return {"name": self.name, "grid": GRID, "step": STEP, "border": BORDER, "prior": PRIOR}

    def _graph(self, picture: Picture) -> _Graph:
        graph = self._graphs.get(picture.content_id)
        if graph is None:
            graph = _Graph(picture)
            self._graphs.put(picture.content_id, graph, graph.nbytes)
        return graph

    def _predict(self, request: ToolRequest) -> ToolReply:
        picture = request.picture
        graph = self._graph(picture)
        height, width = graph.shape
        positive: dict[int, float] = {}
        negative = dict.fromkeys(graph.border, BORDER)
        if request.start_mask is not None:
            core = cv2.resize(
                request.start_mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA
            )
            positive |= dict.fromkeys(np.flatnonzero(core > 0.99).tolist(), PRIOR)
            negative |= dict.fromkeys(np.flatnonzero(core < 0.01).tolist(), PRIOR)
        for click in request.clicks:
            row, column = click_pixel(click, height, width)
            node = row * width + column
            (positive if click.positive else negative)[node] = 0.0
            (negative if click.positive else positive).pop(node, None)
        logits = graph.distance(negative) - graph.distance(positive)
        mask = _upsample(logits, picture.height, picture.width) > 0
        return ToolReply(mask, score=_score(logits), low_res_logits=logits)


class _Graph:
    """The picture as an 8-connected grid, with one more node from which all seeds hang."""

    def __init__(self, picture: Picture) -> None:
        scale = GRID / max(picture.height, picture.width)
        self.shape = (max(1, round(picture.height * scale)), max(1, round(picture.width * scale)))
        height, width = self.shape
        small = cv2.resize(picture.pixels, (width, height), interpolation=cv2.INTER_AREA)
        lab = cv2.cvtColor(cv2.GaussianBlur(small, (0, 0), 1.0), cv2.COLOR_RGB2LAB).astype(np.float32)
        spread = lab.reshape(-1, 3).std(axis=0).max()
        features = lab / max(float(spread), 1.0)
        nodes = np.arange(height * width).reshape(height, width)
        sources, targets, costs = [], [], []
        for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
            here = (slice(0, height - down), slice(max(0, -right), width - max(0, right)))
            there = (slice(down, height), slice(max(0, right), width + min(0, right)))
            contrast = np.linalg.norm(features[here] - features[there], axis=-1)
            length = float(np.hypot(down, right))
            sources.append(nodes[here].ravel())
            targets.append(nodes[there].ravel())
            costs.append((length * STEP + contrast).ravel())
        self._sources = np.concatenate(sources + targets)
        self._targets = np.concatenate(targets + sources)
        self._costs = np.concatenate(costs + costs)
        edge = np.zeros(self.shape, bool)
        edge[[0, -1], :] = edge[:, [0, -1]] = True
        self.border = np.flatnonzero(edge).tolist()
        self.nbytes = self._sources.nbytes + self._targets.nbytes + self._costs.nbytes

    def distance(self, seeds: dict[int, float]) -> Logits:
        """Geodesic distance of every grid node (float32 hxw) to `seeds`, each with its head start."""
        height, width = self.shape
        count = height * width
        if not seeds:
            return np.full(self.shape, 1e6, np.float32)
        root = np.full(len(seeds), count)
        head_starts = np.array(list(seeds.values())) + 1e-9  # scipy reads 0 as no edge
        graph = csr_matrix(
            (
                np.concatenate([self._costs, head_starts]),
                (np.concatenate([self._sources, root]), np.concatenate([self._targets, list(seeds)])),
            ),
            shape=(count + 1, count + 1),
        )
        return dijkstra(graph, indices=count)[:count].reshape(self.shape).astype(np.float32)


def _upsample(logits: Logits, height: int, width: int) -> np.ndarray:
    return cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR)


def _score(logits: Logits) -> float:
    """How clear the cut is: 1 minus the share of uncertain grid nodes beside those in the mask."""
    inside = int(np.count_nonzero(logits > 0))
    unsure = int(np.count_nonzero(np.abs(logits) < STEP * 2))
    return float(max(0.0, 1.0 - unsure / (inside + unsure))) if inside else 0.0
