"""What instructions name: phrases of people, and their traps."""

import json
import os
from pathlib import Path

import pytest

from ibisagent.targets import TARGETS, canonical_target, understand

KNOWN = {
    "liver": [
        "Find the liver in this image.",
        "Can you find a liver in this image?",
        "liver",
        "LIVER!!",
        "Please segment the patient's liver",
        "Where is the liver?",
        "Outline the hepatic parenchyma",
        "Show me the boundary of the liver.",
        "Find the liver, not the spleen",
        "Find the liver without the gallbladder.",
        "Segment the liver (excluding the inferior vena cava)",
        "Find the liver; if it is not present, say so.",
        "Find the liver including the lesion",
        "Find the liver next to the stomach",
        "the liver in this CT of the abdomen",
        "liver with a large lesion",
        "Don't segment the spleen, but the liver",
        "Find the liver on the left side of the image",
        "Which pixels belong to the liver?",
        "Segment the liver right now",
        "Draw an outline around the liver",
        "Find the liver in the chest and abdomen",
        "Find the liver in this non-contrast CT",
        "Draw a line around the liver and put a mask over it",
    ],
    "spleen": [
        "Find the spleen",
        "Not the liver but the spleen",
        "splenic tissue please",
        "The spleen instead of the liver",
        "spleen, please; ignore the left kidney",
        "Segment the spleen, except the splenic vein",
        "Where do you see the spleen in the upper right of the image?",
    ],
    "left kidney": [
        "Find the left kidney in this image.",
        "the patient's left kidney",
        "left-sided kidney",
        "kidney, left",
        "kidney on the left",
        "the kidney on the patient's left side",
        "left renal parenchyma",
        "the kidney on the left of the patient",
        "Lt kidney",
        "Is there a left kidney? Segment it.",
        "left kidney in the right half of the image",
        "Find the left kidney, not the right kidney",
    ],
    "right kidney": [
        "Find the right kidney.",
        "right kidneys",
        "The kidney on the right side of the patient",
        "right renal organ",
        "RIGHT-SIDED KIDNEY",
        "right kidney except the left kidney",
        "right kidney at the left of the image",
        "R kidney",
        "kidney (R)",
        "Find the r. kidney",
        "R kidney at the L of the image",
    ],
    "left lung": [
        "Find the patient's left lung",
        "left lung field",
        "lung on the left",
        "left pulmonary field",
        "L lung",
        "lung L",
    ],
    "right lung": ["Find the right lung", "the right-sided lung", "right lung in this chest x-ray"],
    "lungs": [
        "Find the lungs in this image.",
        "both lungs",
        "left and right lung",
        "the left lung and the right lung",
        "lung fields",
        "Segment the lung",
        "bilateral lungs",
        "lungs in the chest",
    ],
    "left ventricle": [
        "left ventricle",
        "LV",
        "LV cavity",
        "left ventricular blood pool",
        "Find the left ventricle of the heart",
        "Segment the left ventricle (cavity)",
        "the cavity of the left ventricle",
        "the heart's left ventricle",
    ],
    "nuclei": [
        "cell nuclei",
        "Find all nuclei",
        "the nucleus",
        "nuclei of the cells",
        "nuclei in the liver tissue",
    ],
    "brain tumor": [
        "brain tumour",
        "Find the tumor in the brain",
        "glioma",
        "the brain mass",
        "cerebral tumour",
    ],
    "skin lesion": [
        "mole",
        "melanoma",
        "the pigmented lesion",
        "lesion on the skin",
        "skin lesions",
        "naevus",
    ],
    "polyp": ["Find the polyp.", "polyps", "colorectal polyp", "the polyp in the colon"],
    "fetal head": ["foetal head", "fetal head", "the head of the fetus", "baby's head", "foetus head"],
    "inferior vena cava": ["IVC", "inferior vena cava", "vena cava"],
    "portal vein and splenic vein": [
        "portal vein",
        "portal vein and splenic vein",
        "the portal and splenic veins",
    ],
    "aorta": ["aorta", "the abdominal aorta", "descending aorta in this slice"],
    "esophagus": ["oesophagus", "esophagus", "gullet"],
    "gallbladder": ["gall bladder", "gallbladder", "gall-bladder"],
    "pancreas": ["pancreas", "Find the pancreas, excluding the duodenum"],
    "stomach": ["stomach", "Find the stomach in this image."],
    "left adrenal gland": ["left adrenal", "left suprarenal gland", "adrenal gland on the left"],
    "right adrenal gland": ["right adrenal gland", "the right-sided adrenal"],
    "hippocampus": ["hippocampus", "the whole hippocampus", "hippocampal formation"],
    "anterior hippocampus": [
        "anterior hippocampus",
        "the head of the hippocampus",
        "anterior part of the hippocampus",
    ],
    "posterior hippocampus": [
        "posterior hippocampus",
        "the tail of the hippocampus",
        "posterior half of the hippocampus",
    ],
    "nerve": ["nerve", "median nerve", "Find the nerve, not the blood vessel"],
    "blood vessel": ["blood vessel", "the vessels", "blood vessel next to the nerve"],
}

UNKNOWN = [
    ("Find the superior vena cava", "'superior vena cava'"),
    ("Find everything but the liver", "where it is not asked for"),
    ("Find the area outside the liver", "where it is not asked for"),
    ("the tissue around the liver", "where it is not asked for"),
    ("non-liver tissue", "where it is not asked for"),
    ("Segment the clot in the aorta", "'clot' is not a target"),
    ("Is there a pulmonary embolism?", "'embolism' of lung"),
    ("lung opacities", "'opacities' of lung"),
    ("fat around the liver", "'fat' of liver"),
    ("Find the liver and the heart", "exactly one target must be named, here: heart, liver"),
    ("amygdala and hippocampus", "exactly one target must be named, here: amygdala, hippocampus"),
    ("Find the lung that is not the left one", "a side that is not meant"),
    ("hippocampus on the left", "'left hippocampus'"),
    ("caudate nucleus", "'caudate nucleus'"),
    ("nucleus pulposus", "'nucleus pulposus'"),
    ("Find the lung that is on the patient's left of the right lung.", "a description"),
    ("kidney", "twice"),
    ("Find the kidney in this image", "twice"),
    ("the kidney on the left side of the image", "side of the image"),
    ("kidney in the image's right half", "side of the image"),
    ("both kidneys", "exactly one target"),
    ("left and right kidney", "exactly one target"),
    ("left right kidney", "contradict"),
    ("left right lung", "contradict"),
    ("liver and spleen", "exactly one target"),
    ("Find the liver. Find the spleen.", "exactly one target"),
    ("left kidney and liver", "exactly one target"),
    ("liver tumour", "'tumor'"),
    ("tumor of the liver", "'tumor'"),
    ("lung nodule", "'nodule'"),
    ("kidney stone in the left kidney", "'stone'"),
    ("left lobe of the liver", "'lobe'"),
    ("left renal artery", "'artery'"),
    ("head of the pancreas", "'head'"),
    ("liver segment 4", "'segment'"),
    ("right ventricle", "'ventricle'"),
    ("left atrium", "'atrium'"),
    ("left hippocampus", "'left hippocampus'"),
    ("right liver", "'right liver'"),
    ("Find the prostate", "'prostate'"),
    ("heart", "'heart'"),
    ("urinary bladder", "'bladder'"),
    ("What is the weather?", "no known target"),
    ("Do not find the liver", "no known target"),
    ("everything except the liver", "no known target"),
    ("the organ next to the spleen", "'organ'"),
    ("", "names nothing"),
    ("?!", "names nothing"),
    ("左肾", "names nothing"),
    ("Segment", "no known target"),
]


@pytest.mark.parametrize(
    ("target", "phrase"), [(target, phrase) for target, phrases in KNOWN.items() for phrase in phrases]
)
def test_phrases_of_people_name_the_target(target: str, phrase: str) -> None:
    support = understand(phrase)
    assert (support.known, support.target) == (True, target), support.reason


@pytest.mark.parametrize(("phrase", "rule"), UNKNOWN)
def test_what_is_not_one_target_is_refused_with_its_rule_and_the_list(phrase: str, rule: str) -> None:
    support = understand(phrase)
    assert not support.known
    assert support.target is None
    assert rule in support.reason.split("; known targets:")[0]
    assert all(name in support.reason for name in TARGETS)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "form", ["Find the {} in this image.", "{}", "Can you find a {} in this image?", "Is there a {}?"]
)
def test_every_canonical_name_names_itself(target: str, form: str) -> None:
    assert canonical_target(form.format(target)) == target
    assert canonical_target(form.format(target).upper()) == target


def test_every_canonical_name_has_phrases() -> None:
    assert set(KNOWN) == set(TARGETS)
    assert list(TARGETS) == sorted(set(TARGETS))


def test_the_list_is_that_of_the_corpus() -> None:
    root = Path(os.environ.get("IBISAGENT_DATA", Path(__file__).parents[2] / "shared" / "data"))
    files = sorted(root.glob("*/train.json"))
    if not files:
        pytest.skip("shared data sets are missing (IBISAGENT_DATA)")
    names = set()
    for file in files:
        for image in json.loads(file.read_text())["images"]:
            names |= {target["target"] for target in image["targets"]} | set(image["absent"])
    assert names == set(TARGETS)


@pytest.mark.parametrize(
    "instruction",
    [
        "Find the kidney that lies further toward the right edge of the image than the right kidney.",
        "Where is the great vessel beside the spine that is to the left of the aorta as the image is seen?",
        "Find the organ that lies nearest to the liver.",
        "Which of the liver, the spleen and the stomach covers the largest area of this image?",
        "Find the structure that lies between the liver and the spleen.",
        "Where is the solid organ that covers a larger area of this image than the right kidney?",
    ],
)
def test_a_description_is_not_taken_for_the_names_that_it_refers_to(instruction: str) -> None:
    found = understand(instruction)
    assert not found.known
    assert "a description in place of a name" in found.reason


@pytest.mark.parametrize(
    ("instruction", "why"),
    [
        ("find the livr", "did you mean liver?"),
        ("left ventrical", "did you mean left ventricle?"),
        ("there is no liver, right?", "'liver' stands only where it is not asked for"),
        ("don't find the liver", "'liver' stands only where it is not asked for"),
        ("find the toaster", "no known target is named; known targets"),
    ],
)
def test_what_is_nearly_named_is_said(instruction, why):
    found = understand(instruction)
    assert not found.known and why in found.reason
