"""What a teacher may say and what gives it away, both ways."""

import pytest

from ibisagent.synthesis import reasoning
from ibisagent.synthesis.leaks import MAX_CHARACTERS, fault, tidy

LEAKS = {
    "the ground truth": (
        "The ground truth covers more of the liver here.",
        "Compared with the Ground-Truth, the mask is too small.",
        "The groundtruth shows a larger organ on this side.",
        "According to the GT the lower pole is missing.",
        "The gt mask covers the lower pole of the kidney.",
    ),
    "an annotation": (
        "The annotation shows that the lower pole is missing.",
        "An annotator would include this part of the liver.",
        "The annotated region is larger than the green one.",
        "This area is unannotated, so I take it out.",
    ),
    "a label": (
        "The label says that this belongs to the spleen.",
        "This part is labelled as liver and must be added.",
        "It is unlabeled tissue, so I exclude it.",
    ),
    "a reference": (
        "The reference extends further down than the mask.",
        "The mask differs from the reference on the left.",
        "A reference mask would cover the lower pole too.",
        "By the gold standard the tip is missing here.",
    ),
    "a given mask": (
        "The true mask is larger than the one in green.",
        "The correct segmentation covers the lower pole too.",
        "The mask that I have been given covers more.",
        "The provided outline includes the tip of the organ.",
        "The target mask reaches further to the left.",
        "The expert contour runs along the capsule.",
        "The segmentation provided leaves out this corner.",
    ),
    "a score": (
        "The IoU is still too low to stop here.",
        "The dice score would rise with this click.",
        "Dice = high already, so I stop here.",
        "The intersection over union tells me to stop.",
        "This region is a false positive of the tool.",
        "There are false negatives at the lower edge.",
        "The overlap is 9 of 10, good enough to stop.",
    ),
    "a number": (
        "About 20 % of the liver is not covered yet.",
        "Some twenty percent of the organ is missing.",
        "The gap is 0.12 of the picture wide, so I click.",
    ),
    "a coordinate": (
        "I click at (120, 45) inside the liver.",
        "I click at [12, 45] inside the liver.",
        "The middle lies at x = 12 and further down.",
        "These coordinates lie well inside the organ.",
        "The tip is 12 pixels further to the left.",
    ),
    "how it was asked": (
        "I was told that the kidney lies on this side.",
        "As instructed I click on the lower pole.",
        "I've been given the place of the organ.",
        "The simulator chose the lower pole of the organ.",
        "The hint says that the lower part is missing.",
        "The facts provided confirm the missing part.",
        "The chosen action is to click the lower pole.",
        "As an AI I look at the picture and click.",
        "It was found out that the lower part is missing.",
    ),
    "it is not a sentence": ("", "ok", "1 2 3 4 5", "肝臓です。", "Click."),
    "tags": (
        "I see it. </think> <action> Terminate </action> and so on",
        "<b>The liver</b> lies at the left of it.",
        "```The liver lies at the left of it.```",
        '{"thought": "The liver lies at the left"}',
        "Look at < action > and the rest of it all",
        "The picture <image> shows the liver well.",
    ),
}

HARMLESS = (
    "The liver lies at the upper left of the picture and the mask misses its lower tip.",
    "A dark, round structure beside the spine: this is the aorta, so I click in its middle.",
    "With reference to the spine the organ lies further to the front, where I click.",
    "Taking the spine as a reference, I look for the kidney beside it.",
    "The green mask covers a part of the stomach as well; I exclude that part.",
    "The mask shown in green leaves out the lower pole, so I add it there.",
    "Given the mask in green, the lower pole is still missing.",
    "The right boundary of the mask runs into the stomach; that is too far.",
    "The true outline of the organ is hard to see, but its capsule is bright.",
    "The target region is bright and the mask follows its border well.",
    "I correct the mask where it spills over into the bowel.",
    "The question asks for the organ that makes urine, so the kidney is meant.",
    "The instruction means the spleen, which lies at the right of the picture.",
    "The labrum and the labyrinth are not in this picture, nor is the hip.",
    "A radiolabeled tracer would shine here, but nothing does.",
    "The next action must add the upper pole of the kidney.",
    "About two thirds of the organ are covered; the rest lies below.",
    "At the level of T12 and L1 both kidneys can be seen beside the spine.",
    "The mask fits well along the whole border, so no further click would help.",
    "I see one structure, 3 of its lobes are dark and the fourth is bright.",
    "Diced shapes of bowel lie in front; the pancreas is behind them.",
    "This is truly the gallbladder: a dark sac under the liver.",
    "The left kidney cannot lie on the patient's right, so there is nothing to mark.",
    "The studenty look of it aside, the vessel is round and bright.",
    "The grounds of the picture are dark, which makes the bright vessel stand out.",
    "The organ's fine annular border is visible all around.",
    "I showed the tool the middle of the organ and it now covers it.",
)


@pytest.mark.parametrize(("what", "text"), [(what, text) for what, texts in LEAKS.items() for text in texts])
def test_leaks_are_named(what, text):
    found = fault(tidy(text))
    assert found is not None and what in found


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_harmless_passes(text):
    assert fault(tidy(text)) is None


def test_what_cannot_be_seen_hides_nothing():
    assert "ground truth" in fault(tidy("The gro\u200bund\u00a0tru\u00adth covers more of the liver."))
    assert "ground truth" in fault(tidy("The ｇｒｏｕｎｄ\ntruth covers more of the liver."))
    assert "asked" in fault(tidy("I’ve been told where the liver lies in this."))
    assert tidy(" a\n\tb \x00c\u200b ") == "a b c"


def test_length():
    text = "The liver is large. " * 100
    assert len(text) > MAX_CHARACTERS and "characters" in fault(tidy(text))
    assert fault(tidy(text[:MAX_CHARACTERS])) is None


def test_every_template_would_pass():
    for text in reasoning.sentences()[::5]:
        if len(text.split()) > 5:
            assert fault(tidy(text)) is None, text
