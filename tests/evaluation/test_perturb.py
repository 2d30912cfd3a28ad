from dataclasses import replace

import numpy as np
import pytest
from conftest import disc

from ibisagent.actions import parse
from ibisagent.errors import InputError
from ibisagent.evaluation.perturb import (
    KINDS,
    Blur,
    Contrast,
    Noise,
    Perturbation,
    Placement,
    WrongFirstClick,
    draw,
)
from ibisagent.policies.scripted import fixed
from ibisagent.targets import TARGETS, in_the_mirror, understand
from ibisagent.types import BASE_VERBS, Click, Mask, Observation, Picture, Sample


def make(truth: Mask, target: str | None = "liver", spacing: tuple[float, float] | None = None) -> Sample:
    """A picture whose bright pixels are the target."""
    grey = np.where(truth, 200, 40).astype(np.uint8)
    picture = Picture(np.repeat(grey[..., None], 3, axis=2), spacing=spacing)
    return Sample("s", picture, "Find the liver in this image.", target, truth)


TRUTH = disc(90, 120, 30, 45, 12)


@pytest.mark.parametrize("kind", KINDS)
def test_strength_0_changes_nothing_and_draws_repeat(kind: str) -> None:
    sample = make(TRUTH)
    same = Perturbation(kind, 0.0)(sample)
    assert np.array_equal(same.picture.pixels, sample.picture.pixels)
    assert same.instruction == sample.instruction and np.array_equal(same.truth, TRUTH)
    assert draw(kind, sample, 1.0, 3) == draw(kind, sample, 1.0, 3)
    other = replace(sample, sample_id="another", target="spleen", truth=disc(90, 120, 35, 50, 9))
    if kind in ("noise", "blur", "contrast", "rotation", "shift", "mirror"):
        assert draw(kind, sample, 1.0, 3) == draw(kind, other, 1.0, 3), "one picture, one draw"


def test_picture_kinds_do_what_they_are_named_for() -> None:
    sample = make(TRUTH)
    noisy = Noise(15.0, 4).apply(sample).picture.pixels.astype(float) - sample.picture.pixels
    assert 14 < noisy.std() < 16 and np.array_equal(noisy[..., 0], noisy[..., 2])
    flat = Blur(3.0).apply(sample).picture.pixels
    assert np.abs(np.diff(flat[..., 0].astype(float))).max() < 60 < 160
    halved = Contrast(0.5).apply(sample).picture.pixels
    assert int(halved.max()) - int(halved.min()) == 80
    for change in (Noise(15.0, 4), Blur(3.0), Contrast(0.5)):
        assert np.array_equal(change.apply(sample).truth, TRUTH)


def test_a_placement_moves_picture_and_mask_alike() -> None:
    for change in (Placement(degrees=20), Placement(zoom=1.3, down=0.1, right=-0.05), Placement(zoom=0.7)):
        moved = change.apply(make(TRUTH))
        bright = moved.picture.pixels[..., 0] > 120
        assert moved.truth is not None
        shared = np.count_nonzero(bright & moved.truth) / np.count_nonzero(bright | moved.truth)
        assert shared > 0.93 and moved.truth.sum() == pytest.approx(TRUTH.sum() * change.zoom**2, rel=0.06)
    centre = np.argwhere(Placement(down=0.1, right=0.25).place_mask(TRUTH)).mean(0)
    assert centre == pytest.approx((30 + 9, 45 + 30), abs=0.01)
    turned = np.argwhere(Placement(degrees=90).place_mask(disc(91, 91, 45, 70, 8))).mean(0)
    assert turned == pytest.approx((20, 45), abs=0.1), "counter-clockwise: from the right to the top"
    cut = Placement(crop=(0.5, 0.0, 0.0, 0.0)).apply(make(TRUTH))
    assert not cut.picture.pixels[:45].any() and cut.picture.pixels[45:].all()


def test_a_mirrored_picture_keeps_the_convention() -> None:
    known = replace(make(TRUTH, "left kidney"), instruction="Find the left kidney in this image.")
    known = replace(known, picture=replace(known.picture, laterality="known"))
    seen = Perturbation("mirror")(known)
    assert np.array_equal(seen.truth, TRUTH[:, ::-1])
    assert np.array_equal(seen.picture.pixels[..., 0] > 120, TRUTH[:, ::-1])
    assert seen.instruction == "Find the right kidney in this image."
    assert seen.picture.laterality == "assumed" and seen.target == "left kidney", "the case keeps its name"
    heart = replace(known, target="left ventricle", instruction="Find the left ventricle.")
    assert Perturbation("mirror")(heart).instruction == "Find the left ventricle."
    assert [in_the_mirror(name) for name in TARGETS if in_the_mirror(name) != name] == [
        "right adrenal gland", "right kidney", "right lung", "left adrenal gland", "left kidney", "left lung",
    ]  # fmt: skip


def test_a_rotation_is_rigid_in_millimetres() -> None:
    """A disc in millimetres on unequal pixels stays one, and zoom changes the spacing."""
    rows, columns = np.mgrid[:80, :160]
    truth = ((rows - 40) * 2.0) ** 2 + (columns - 60) ** 2 < 20**2
    turned = Placement(degrees=30).apply(make(truth, spacing=(2.0, 1.0))).truth
    assert turned is not None
    height, width = np.ptp(np.argwhere(turned), axis=0) + 1
    assert abs(2 * height - width) <= 3
    zoomed = Placement(zoom=1.25).apply(make(truth, spacing=(2.0, 1.0)))
    assert zoomed.picture.spacing == (1.6, 0.8)


def test_a_shift_keeps_at_least_half_of_the_target() -> None:
    zooms = []
    for seed in range(60):
        truth = disc(90, 120, 8, 8, 7)  # in a corner, easily lost
        change = draw("shift", make(truth), 1.0, seed)
        assert isinstance(change, Placement)
        zooms.append(change.zoom)
        assert change.place_mask(truth).sum() >= 0.5 * truth.sum() * change.zoom**2 * 0.97
        assert abs(change.down) <= 0.15 and max(change.crop) <= 0.10
    assert 0.7 <= min(zooms) < 0.8 and 1.2 < max(zooms) <= 1.4


def test_instructions_keep_or_contradict_what_is_shown() -> None:
    sample = make(TRUTH)
    for seed in range(30):
        said = Perturbation("paraphrase", seed=seed)(sample)
        assert understand(said.instruction).target == "liver", said.instruction
    assert (
        Perturbation("wrong-place")(sample).instruction == "Find the liver in the lower right of this image."
    )
    assert "shows no liver" in Perturbation("denied")(sample).instruction
    nothing = Perturbation("contradictory")(sample)
    assert nothing.truth is not None and not nothing.truth.any() and "leave out" in nothing.instruction
    sided = Perturbation("contradictory")(replace(sample, target="left kidney")).instruction
    assert sided == "Find the left kidney on the patient's right side." and not understand(sided).known
    with pytest.raises(InputError, match="targets with names"):
        Perturbation("paraphrase")(make(TRUTH, target=None))


def test_the_first_click_is_wrong_then_the_policy_goes_on() -> None:
    policy = WrongFirstClick(fixed(["later"]), {"s": TRUTH})
    blank = np.zeros((90, 120, 3), np.uint8)
    for seed in range(20):
        seen = Observation("s", "Find it.", blank, (), None, (), BASE_VERBS, 1, 0, seed)
        action = parse(policy.act([seen])[0].text, BASE_VERBS).action
        assert isinstance(action, Click) and action.positive
        assert not TRUTH[int(action.y * 90), int(action.x * 120)]
    second = replace(seen, turn=2)
    texts = [reply.text for reply in policy.act([second, seen])]
    assert texts[0] == "later" and "Positive Point" in texts[1]


def test_wrong_options_are_named() -> None:
    with pytest.raises(InputError, match="one of those known"):
        Perturbation("fog")
    with pytest.raises(InputError, match="--strength"):
        Perturbation("noise", 9.0)
