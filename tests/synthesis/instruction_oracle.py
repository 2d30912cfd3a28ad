"""What an instruction says, read from its text alone and worked out pixel by pixel.

Nothing of the package's geometry or of an instruction's stored meaning is used. `right_answers` gives
the names that fit under each of several plain readings of a relation (mean, median, middle of the
box; smallest gap, ...): an instruction is sound where every reading gives the one right answer.
"""

from __future__ import annotations

import re

import numpy as np
from scipy.ndimage import binary_erosion
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist

GROUPS = {
    "kidney": {"left kidney", "right kidney"},
    "adrenal gland": {"left adrenal gland", "right adrenal gland"},
    "lung": {"left lung", "right lung"},
    "great vessel beside the spine": {"aorta", "inferior vena cava"},
    "part of the hippocampus": {"anterior hippocampus", "posterior hippocampus"},
    "solid organ of the upper abdomen": {
        *("liver", "spleen", "pancreas", "left kidney", "right kidney"),
        *("left adrenal gland", "right adrenal gland"),
    },
}
DIRECTIONS = {  # words: axis (0 columns), sign of the coordinate that grows along it
    r"(?:toward|to) the left (?:edge of the image|of .* as the image is seen)": (0, -1),
    r"(?:toward|to) the right (?:edge of the image|of .* as the image is seen)": (0, 1),
    r"(?:toward|on) the patient's left": (0, 1),  # radiological: it is at image right
    r"(?:toward|on) the patient's right": (0, -1),
    r"(?:higher|highest) in the image|is above .* in the image": (1, -1),
    r"(?:lower|lowest) in the image|is below .* in the image": (1, 1),
}


def right_answers(text, masks):
    """For each plain reading, the set of names that the text picks; also all that its words can mean."""
    candidates, phrase, references = _parse(text)
    present = {name: masks[name] for name in candidates if name in masks}
    found = []
    if "area of this image" in phrase:
        sizes = {name: mask.sum() for name, mask in present.items()}
        bound = [masks[name].sum() for name in references]
        more = "larger" in phrase or "largest" in phrase
        found.append(_picked(sizes, bound, 1 if more else -1))
    elif "between" in phrase:
        points = np.concatenate([_points(masks[name]) for name in references])
        hull = ConvexHull(points)
        for share in (0.2, 0.5, 0.8):
            found.append({name for name, mask in present.items() if _share_within(hull, mask) > share})
    elif "inside" in phrase:
        share = {name: (mask & masks[references[0]]).sum() / mask.sum() for name, mask in present.items()}
        found += [{name for name, part in share.items() if part > bound} for bound in (0.1, 0.5, 0.9)]
    elif "nearest" in phrase or "smallest gap" in phrase:
        other = _points(_rim(masks[references[0]]))
        gaps = {name: cdist(_points(_rim(mask)), other).min() for name, mask in present.items()}
        found.append({name for name, gap in gaps.items() if gap <= min(gaps.values()) + 2})
    else:
        axis, sign = next(value for words, value in DIRECTIONS.items() if re.search(words, phrase))
        for measure in (np.mean, np.median, lambda places: (places.min() + places.max()) / 2):
            centres = {name: measure(_points(mask)[:, axis]) for name, mask in present.items()}
            bound = [measure(_points(masks[name])[:, axis]) for name in references]
            found.append(_picked(centres, bound, sign))
    return candidates, found


def _picked(values, bound, sign):
    """Beyond the bound where there is one, else the first in order (with all that are tied)."""
    if bound:
        return {name for name, value in values.items() if sign * value > sign * bound[0]}
    best = max(sign * value for value in values.values())
    return {name for name, value in values.items() if sign * value == best}


def _share_within(hull, mask):
    distances = hull.equations[:, :2] @ _points(mask).T + hull.equations[:, 2:]
    return (distances <= 1e-6).all(axis=0).mean()


def _rim(mask):
    return mask & ~binary_erosion(mask)


def _points(mask):
    rows, columns = np.nonzero(mask)
    return np.stack([columns, rows], axis=1).astype(float)


def _parse(text):
    """Candidates, phrase and references of a relation's text."""
    listed = re.fullmatch(
        r"(?:Of|Mark which of) the (.+?)(?:, find the one that (.+)| (lies .+|covers .+|is .+|has .+))\.",
        text,
    )
    if listed:
        names = re.split(r", the | and the ", listed[1])
        phrase = listed[2] or listed[3]
        return names, phrase, _references(phrase)
    grouped = re.fullmatch(r"(?:Find|Where is) the (.+?) that (.+)[.?]", text)
    references = _references(grouped[2])
    return sorted(GROUPS[grouped[1]] - set(references)), grouped[2], references


def _references(phrase):
    pair = re.search(r"between the (.+) and the (.+)", phrase)
    if pair:
        return [pair[1], pair[2]]
    one = re.search(
        r"(?:than|inside|nearest to|gap to|above|below|left of|right of) the (.+?)(?: as the image| in the image|$)",
        phrase,
    )
    return [one[1]] if one else []
