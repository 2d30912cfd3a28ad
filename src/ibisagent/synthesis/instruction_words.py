"""What is known about structures beside their names: other names, functions, groups, where they cannot be.

Only what holds for every picture is here: "melanoma" is no other name of a skin lesion, and an organ
counts as impossible in a picture only where no usual field of view of that region can hold it.
"""

from __future__ import annotations

from collections.abc import Mapping

PAIRED = ("kidney", "adrenal gland", "lung")
"""Organs that exist once on each side of the patient; their targets are "left X" and "right X"."""

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "anterior hippocampus": ("hippocampal head", "head of the hippocampus"),
    "blood vessel": ("vessel",),
    "brain tumor": ("intracranial tumor", "brain neoplasm", "brain tumour"),
    "esophagus": ("gullet", "food pipe", "oesophagus"),
    "fetal head": ("head of the fetus", "baby's head", "head of the unborn child"),
    "gallbladder": ("gall bladder", "cholecyst"),
    "hippocampus": ("hippocampal formation", "whole hippocampus"),
    "inferior vena cava": ("IVC", "inferior caval vein"),
    "left adrenal gland": ("left suprarenal gland", "left adrenal"),
    "left kidney": ("left renal organ", "left ren"),
    "left lung": ("left lung field", "left pulmonary field"),
    "left ventricle": ("left ventricular cavity", "LV cavity", "left ventricular blood pool"),
    "liver": ("hepatic organ", "liver parenchyma", "hepar"),
    "lungs": ("lung fields", "pulmonary fields"),
    "nerve": ("peripheral nerve",),
    "nuclei": ("cell nuclei", "nuclei of the cells"),
    "pancreas": ("pancreatic gland", "pancreatic tissue"),
    "polyp": ("polypoid lesion", "bowel polyp", "polypoid growth"),
    "portal vein and splenic vein": ("portal and splenic veins", "splenic and portal veins"),
    "posterior hippocampus": ("body and tail of the hippocampus", "posterior part of the hippocampus"),
    "right adrenal gland": ("right suprarenal gland", "right adrenal"),
    "right kidney": ("right renal organ", "right ren"),
    "right lung": ("right lung field", "right pulmonary field"),
    "skin lesion": ("lesion of the skin", "skin spot"),
    "spleen": ("splenic organ", "lien"),
    "stomach": ("gaster", "gastric organ"),
}

FUNCTIONS: Mapping[str, tuple[str, ...]] = {
    "adrenal gland": (
        "small gland that makes adrenaline and cortisol",
        "gland above the kidney whose hormones answer stress",
    ),
    "anterior hippocampus": ("front part of the structure in which new memories form",),
    "aorta": ("largest artery of the body", "artery that carries blood from the heart to the whole body"),
    "blood vessel": ("tube that blood flows through",),
    "brain tumor": ("abnormal growth inside the skull",),
    "esophagus": ("muscular tube that carries food down from the throat",),
    "fetal head": ("part of the unborn child that holds its brain",),
    "gallbladder": ("small sac that stores bile", "sac in which bile is kept until a meal"),
    "hippocampus": ("structure of the temporal lobe in which new memories form",),
    "inferior vena cava": ("large vein that returns blood from the lower body to the heart",),
    "kidney": (
        "organ that filters blood and makes urine",
        "organ that sends urine to the bladder",
    ),
    "left ventricle": ("chamber of the heart that pumps blood into the aorta",),
    "liver": ("organ that makes bile", "large organ that stores glycogen and makes bile"),
    "lung": ("organ that takes up oxygen from the air", "organ of breathing"),
    "lungs": ("two organs that take up oxygen from the air", "pair of organs that we breathe with"),
    "nerve": ("bundle of fibres that carries signals to muscles and from the skin",),
    "nuclei": ("parts of the cells that hold their DNA",),
    "pancreas": ("gland that makes insulin", "gland that gives insulin to the blood and enzymes to the gut"),
    "polyp": ("growth that bulges from the bowel wall",),
    "portal vein and splenic vein": ("veins that bring blood from gut and spleen to the liver",),
    "posterior hippocampus": ("rear part of the structure in which new memories form",),
    "skin lesion": ("patch of skin that does not look like the skin around it",),
    "spleen": ("largest lymphatic organ", "organ that breaks down old red blood cells and holds lymphocytes"),
    "stomach": ("hollow organ in which food is mixed with acid",),
}
"""By target, or by organ where a side must be added; each fits one entry and no other."""

SOLID_ORGANS = (
    "left adrenal gland",
    "left kidney",
    "liver",
    "pancreas",
    "right adrenal gland",
    "right kidney",
    "spleen",
)

GROUPS: Mapping[str, tuple[str, ...]] = {
    **{organ: (f"left {organ}", f"right {organ}") for organ in PAIRED},
    "solid organ of the upper abdomen": SOLID_ORGANS,
    "great vessel beside the spine": ("aorta", "inferior vena cava"),
    "part of the hippocampus": ("anterior hippocampus", "posterior hippocampus"),
}
"""Words for groups of structures, with everything that they can mean."""

_ABDOMINAL = ("gallbladder", "left kidney", "liver", "pancreas", "right kidney", "spleen", "stomach")
_HEAD = ("anterior hippocampus", "brain tumor", "hippocampus", "posterior hippocampus")

IMPOSSIBLE: Mapping[str, tuple[str, ...]] = {
    "abdomen": _HEAD,
    "brain": (*_ABDOMINAL, "left lung", "lungs", "right lung"),
    "cell": ("aorta", "fetal head", "gallbladder", "left lung", "stomach"),
    "chest": _HEAD,
    "colon": ("aorta", "fetal head", "left kidney", "right kidney", "spleen", *_HEAD),
    "fetus": ("gallbladder", "left kidney", "polyp", "right kidney"),
    "heart": ("fetal head", *_HEAD),
    "hippocampus region": (*_ABDOMINAL, "left lung", "lungs", "right lung"),
    "limb": (*_ABDOMINAL, "fetal head", "left lung", "right lung", *_HEAD),
    "skin": (*_ABDOMINAL, "fetal head", "left lung", "right lung", *_HEAD),
}
"""By site: targets of other body regions, which its pictures cannot show."""

SIDED_SITES = frozenset({"abdomen", "chest", "pelvis", "thorax"})
"""Sites of which CT, MRI and X-ray pictures have the patient's right at image left by convention."""

RIGHT_TO_LEFT = (
    ("right kidney", "left kidney"),
    ("right lung", "left lung"),
    ("right adrenal gland", "left adrenal gland"),
    ("liver", "spleen"),
    ("liver", "left kidney"),
    ("right kidney", "spleen"),
    ("right kidney", "aorta"),
    ("aorta", "left kidney"),
    ("inferior vena cava", "aorta"),
    ("aorta", "spleen"),
)
"""Pairs of which the first lies further on the patient's right: they tell whether a picture is mirrored."""

PHRASES: Mapping[str, tuple[str, ...]] = {
    "left": (
        "lies further toward the left edge of the image than {0}",
        "is to the left of {0} as the image is seen",
    ),
    "right": (
        "lies further toward the right edge of the image than {0}",
        "is to the right of {0} as the image is seen",
    ),
    "patient left": ("lies further toward the patient's left than {0}", "is on the patient's left of {0}"),
    "patient right": ("lies further toward the patient's right than {0}", "is on the patient's right of {0}"),
    "above": ("lies higher in the image than {0}", "is above {0} in the image"),
    "below": ("lies lower in the image than {0}", "is below {0} in the image"),
    "larger": ("covers a larger area of this image than {0}",),
    "smaller": ("covers a smaller area of this image than {0}",),
    "between": ("lies between {0} and {1}",),
    "inside": ("lies inside {0}",),
    "nearest": ("lies nearest to {0}", "has the smallest gap to {0}"),
    "leftmost": ("lies furthest toward the left edge of the image",),
    "rightmost": ("lies furthest toward the right edge of the image",),
    "patient leftmost": ("lies furthest toward the patient's left",),
    "patient rightmost": ("lies furthest toward the patient's right",),
    "highest": ("lies highest in the image",),
    "lowest": ("lies lowest in the image",),
    "largest": ("covers the largest area of this image",),
    "smallest": ("covers the smallest area of this image",),
}
"""How relations are said; every left and right says whose it is."""

NAMES = (
    "Find the {0} in this image.",
    "Segment the {0}.",
    "Mark the {0}.",
    "Outline the {0} in this picture.",
    "Please delineate the {0}.",
)
QUESTIONS = (
    "Where {is} the {0} in this image?",
    "Can you find the {0} in this picture?",
    "Could you show me the {0}?",
    "Can you see the {0} in this picture?",
)
DESCRIBED = ("Find the {0}.", "Mark the {0} in this picture.", "Where {is} the {0}?")
SIDED = (
    "Find the {organ} on the patient's {side}.",
    "Mark the {organ} on the {side} side of the patient's body.",
    "Segment the patient's {side} {organ}.",
)
OPPOSED = ("{name} on the patient's {side}", "{name} that lies on the {side} side of the patient's body")
