"""What the embedded pair was taught to find, and how an instruction names it.

`understand` reads an instruction word by word, in five rules:

1. What follows not, except, without, excluding, instead of (up to the next comma, "but" or full
   stop) does not count, nor does what follows a place word (next to, behind, left of, with, ...).
2. The longest known phrase wins: "brain tumour" is one target, not an organ and a tumour.
3. A part or disease of an organ is not the organ: "liver tumour", "left lobe of the liver" and
   "renal artery" name something that was never taught.
4. Sides are the patient's. "On the left side of the image" says where to look, not which organ,
   so it never chooses between a left and a right one. A lone L or R is a side where the organ has sides.
5. Exactly one target must remain. Two targets, an organ that exists on both sides named without
   its side, and two sides that contradict each other are refused with the reason. The only pair
   that is one target is the lungs.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from dataclasses import dataclass

from ibisagent.types import Laterality, Support

TARGETS: tuple[str, ...] = (
    "anterior hippocampus",
    "aorta",
    "blood vessel",
    "brain tumor",
    "esophagus",
    "fetal head",
    "gallbladder",
    "hippocampus",
    "inferior vena cava",
    "left adrenal gland",
    "left kidney",
    "left lung",
    "left ventricle",
    "liver",
    "lungs",
    "nerve",
    "nuclei",
    "pancreas",
    "polyp",
    "portal vein and splenic vein",
    "posterior hippocampus",
    "right adrenal gland",
    "right kidney",
    "right lung",
    "skin lesion",
    "spleen",
    "stomach",
)
"""Canonical names, in alphabetical order: the order is part of the weights' layout."""

OTHER_SIDE = {"left": "right", "right": "left"}
_PAIRED = {
    "kidney": "kidney|kidneys|renal organ|renal parenchyma|renal|ren|nephros",
    "adrenal gland": (
        "adrenal gland|adrenal glands|adrenal|adrenals|suprarenal gland|suprarenal glands|suprarenal"
    ),
    "lung": (
        "lung|lungs|lung field|lung fields|pulmonary field|pulmonary fields|pulmonary parenchyma|pulmonary"
    ),
}

_SYNONYMS = {
    "anterior hippocampus": (
        "anterior hippocampus|anterior hippocampal formation|anterior part of hippocampus|"
        "anterior portion of hippocampus|anterior half of hippocampus|front of hippocampus|"
        "hippocampal head|head of hippocampus|hippocampus head|hippocampus anterior|"
        "anterior hippocampal"
    ),
    "posterior hippocampus": (
        "posterior hippocampus|posterior hippocampal formation|posterior hippocampal|"
        "posterior part of hippocampus|posterior portion of hippocampus|"
        "posterior half of hippocampus|back of hippocampus|hippocampal tail|"
        "hippocampal body and tail|hippocampus posterior|body and tail of hippocampus|"
        "tail of hippocampus|hippocampus tail"
    ),
    "hippocampus": (
        "hippocampus|hippocampi|hippocampal formation|whole hippocampus|entire hippocampus|hippocampal"
    ),
    "aorta": "aorta|abdominal aorta|descending aorta|aortic lumen|aortic",
    "blood vessel": "blood vessel|blood vessels|vessel|vessels|bloodvessel|vasculature",
    "brain tumor": (
        "brain tumor|brain tumors|tumor of brain|tumor in brain|tumor inside brain|cerebral tumor|"
        "intracranial tumor|brain mass|brain neoplasm|brain cancer|brain lesion|glioma|meningioma|"
        "pituitary tumor|intracranial mass|lesion in brain|tumor in head|brain tumor mass|"
        "brain tumor tissue"
    ),
    "esophagus": "esophagus|gullet|food pipe|esophageal",
    "fetal head": (
        "fetal head|head of fetus|fetus head|baby head|babys head|fetal skull|head of baby|"
        "head of unborn child|fetal cranium|fetuss head|fetal head circumference|skull of fetus|"
        "fetal heads"
    ),
    "gallbladder": "gallbladder|gall bladder|cholecyst|vesica biliaris",
    "inferior vena cava": "inferior vena cava|ivc|inferior caval vein|vena cava inferior|vena cava",
    "left ventricle": (
        "left ventricle|left ventricular cavity|left ventricular blood pool|left ventricular|"
        "left ventricle cavity|left ventricle blood pool|lv|lv cavity|lv blood pool|lv bloodpool|"
        "left ventricular chamber|left ventricular lumen|left heart chamber|"
        "cavity of left ventricle|left cardiac ventricle|lv chamber|left ventricular bloodpool|"
        "blood pool of left ventricle|endocardial cavity"
    ),
    "liver": (
        "liver|hepatic organ|hepatic parenchyma|hepatic tissue|liver parenchyma|liver tissue|hepatic|hepar"
    ),
    "nerve": (
        "nerve|nerves|peripheral nerve|peripheral nerves|median nerve|ulnar nerve|nerve bundle|"
        "neural bundle|nerve fascicle|nerve fascicles"
    ),
    "nuclei": (
        "nuclei|nucleus|cell nuclei|cell nucleus|nucleuses|cellular nuclei|nuclei of cells|"
        "nuclei of cell|nucleus of cell|stained nuclei|cells nuclei"
    ),
    "pancreas": "pancreas|pancreatic tissue|pancreatic gland|pancreatic parenchyma|pancreatic",
    "polyp": (
        "polyp|polyps|polypoid lesion|polypoid lesions|polypoid growth|colon polyp|colonic polyp|"
        "colorectal polyp|bowel polyp|adenomatous polyp|polyp in colon|colon polyps|"
        "colorectal polyps"
    ),
    "portal vein and splenic vein": (
        "portal vein and splenic vein|splenic vein and portal vein|portal and splenic veins|"
        "portal and splenic vein|splenic and portal veins|portal vein|splenic vein|portal veins|"
        "hepatic portal vein|vena portae|portosplenic veins|portal venous system|"
        "portal vein splenic vein|portosplenic confluence|splenoportal confluence"
    ),
    "skin lesion": (
        "skin lesion|skin lesions|melanoma|mole|moles|nevus|nevi|naevus|naevi|cutaneous lesion|"
        "pigmented lesion|pigmented skin lesion|lesion of skin|lesion on skin|lesion in skin|"
        "skin cancer|skin tumor|skin spot|birthmark|melanocytic lesion|dermal lesion|"
        "dermatological lesion|melanomas|skin mole|dark spot on skin|pigmented spot|"
        "skin abnormality"
    ),
    "spleen": "spleen|splenic organ|splenic parenchyma|splenic tissue|splenic|lien",
    "stomach": "stomach|gastric organ|gastric lumen|gaster|gastric",
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split("|"))


# A part or a disease of something: with an organ it names what was never taught (rule 3).
_PARTS = _words(
    "tumor tumors lesion lesions cyst cysts stone stones nodule nodules metastasis metastases mass "
    "masses cancer carcinoma adenoma abscess hematoma hemangioma aneurysm infarct calcification "
    "thrombus edema effusion pneumonia pneumothorax fibrosis lobe lobes segments vein veins artery "
    "arteries duct ducts wall cortex medulla pelvis capsule hilum hilus head tail body fundus antrum "
    "neck base apex ventricle ventricles atrium muscle bone biopsy hernia ulcer polyposis sheath "
    "septum valve disease opacity infiltrate consolidation fissure bronchus bronchi airway airways "
    "myocardium dissection stent lumbar plaque sinus hemorrhage bleeding stroke fracture laceration "
    "necrosis transplant cytoplasm membrane epicardium apices bladder gland glands clot embolism embolus "
    "emboli gas air fat fluid blood ascites sclerosis steatosis cirrhosis inflammation infection gallstone "
    "calculus calculi atelectasis emphysema tuberculosis catheter tube svc"
)
# Names that hold the name of a target and are something else.
_OTHERS = _names(
    "superior vena cava|vena cava superior|superior caval vein|upper vena cava|both venae cavae|"
    "caudate nucleus|lentiform nucleus|red nucleus|subthalamic nucleus|dentate nucleus|nucleus accumbens|"
    "nucleus pulposus|basal nuclei|thalamic nuclei|deep nuclei|optic nerve|vagus nerve"
)

# Anatomy that is context beside a target and, alone, something that was never taught.
_PLACES = _words(
    "abdomen abdominal belly chest thorax thoracic brain colon bowel rectum skin arm leg limb heart "
    "cardiac tissue fetus baby womb uterus prostate breast thyroid eye retina optic spine vertebra "
    "vertebrae rib ribs duodenum intestine appendix ureter trachea diaphragm tooth teeth knee hip "
    "shoulder hand foot ovary testis skull cell cells tongue larynx cartilage meniscus femur tibia "
    "clavicle mandible placenta amygdala thalamus cerebellum cerebrum brainstem lymph node nodes "
    "tonsil ear nose pleura mediastinum omentum mesentery cat dog car person organ organs"
)

_NEGATIONS = (
    r"(?:not|no|except|excepting|without|exclud(?:e|es|ing)|instead of|rather than|other than|"
    r"ignor(?:e|ing)|omit|omitting|avoid|avoiding|non (?!contrast|enhanced))"
)
_BESIDE = (
    r"(?:next to|beside|besides|behind|in front of|near|close to|adjacent to|below|above|beneath|"
    r"between|(?:left|right) (?:of|from)|with|including|include|includes|containing|despite|along with|"
    r"touching|surrounding|outside|(?:area|region|tissues?|space|zone|everything|structures?) around|"
    r"(?:lateral|medial|anterior|posterior|superior|inferior) to|"
    r"draining|supplying)"
)
_IMAGE = (
    r"(?:image|picture|photo|photograph|scan|screen|slice|frame|view|radiograph|film|figure|mri|ct|x ray|"
    r"viewer|panel|display)"
)
_SIDE = r"(?:left|right|l|r)"
_IMAGE_SIDE = re.compile(
    rf"\b(?:{_IMAGE} s? ?{_SIDE}(?: hand)?(?: side| half| edge| part)?"
    rf"|{_SIDE}(?: hand)?(?: side| half| part| edge| corner| border| third)? (?:of|in|on) "
    rf"(?:the |this |that |our )?{_IMAGE}"
    rf"|(?:upper|lower|top|bottom) {_SIDE}|{_SIDE} (?:upper|lower|top|bottom)(?! lobe)"
    rf"|viewers? s? ?{_SIDE}|{_SIDE}(?: hand)? side of (?:the |this )?viewer)\b"
)
# "the organ that lies left of the liver": what is asked for is described, the names only refer.
_DESCRIBED = re.compile(
    r"\b(?:organs?|structures?|vessels?|veins?|glands?|parts?|things?|objects?|ones?|half|halves) "
    r"(?:that|which|whose)\b|\b(?:which|what) of\b|\b(?:further|furthest|nearest|closest)\b"
    r"|\bgaps? to\b|\bon the patient s (?:left|right) of the (?:left|right)\b"
    r"|\b(?:larger|smaller|bigger|higher|lower)\b.*\bthan\b|\b(?:largest|smallest) area\b"
    r"|\b(?:highest|lowest|leftmost|rightmost|topmost|uppermost|lowermost)\b"
    r"|\b(?:that|which) (?:lies?|is|are|sits?|stands?) (?:to the|the|above|below|between|inside|left|right)\b"
)
_FILLERS = re.compile(
    r"\b(?:right now|right away|all right|alright|right here|the|a|an|this|that|my|our|his|her|their|any|s)\b"
)
_SPELLING = (
    (r"\btumour", "tumor"),
    (r"\boesophag", "esophag"),
    (r"\bfoet", "fet"),
    (r"\bfaet", "fet"),
    (r"\bhaema", "hema"),
    (r"\bhaemo", "hemo"),
    (r"\boedema", "edema"),
    (r"\bleft sided\b|\bleft side s\b|\bleft hand\b|\blt\b|\bsinistral\b", "left"),
    (r"\b(left|right)(?: hand)?(?: side)? of (?:the |this )?(?:patient|body)\b", r"\1"),
    (r"\bright sided\b|\bright hand\b|\brt\b", "right"),
)


@dataclass(frozen=True)
class _Word:
    """One thing that an instruction names."""

    kind: str  # target, paired, part, place, side, letter (l, r), joint ("and", "both", "or", ...)
    name: str
    context: bool  # it follows "in", "of", ...: says where, unless nothing else is named


def _phrases() -> dict[str, tuple[str, str]]:
    table = {phrase: ("paired", organ) for organ, names in _PAIRED.items() for phrase in names.split("|")}
    table |= {
        phrase: ("target", target) for target, names in _SYNONYMS.items() for phrase in names.split("|")
    }
    several = {f"{word}s" for word in _PARTS} | {f"{word[:-1]}ies" for word in _PARTS if word.endswith("y")}
    table |= {word: ("part", word) for word in _PARTS | several} | {word: ("place", word) for word in _PLACES}
    table |= {name: ("part", name) for name in _OTHERS}
    # "segment" alone is the verb.
    table |= {f"{organ} segment": ("part", "segment") for organ in ("liver", "hepatic", "lung", "kidney")}
    table |= {word: ("side", word) for word in ("left", "right")} | {
        "l": ("letter", "left"),
        "r": ("letter", "right"),
    }
    table |= {word: ("joint", word) for word in ("and", "both", "bilateral", "or", "either", "plus")}
    return table


_PHRASES = _phrases()
_LONGEST = max(phrase.count(" ") + 1 for phrase in _PHRASES)
_PREPOSITIONS = _words("of in inside within on from at into for through")


def _normalise(instruction: str) -> str:
    """Lower-case words and single commas; British to American; articles dropped."""
    text = unicodedata.normalize("NFKD", instruction).encode("ascii", "ignore").decode().lower()
    text = re.sub(r"\b(?:do|does|is|are|was|should|must|can|ca|wo|would|could)n'?t\b", " not ", text)
    text = re.sub(r"'s\b", " s ", text)
    text = re.sub(r"\b(?:everything|anything|all) but\b", " except ", text)
    text = re.sub(r"[.,;:!?()\[\]]+|\bbut\b", " , ", text)
    text = re.sub(r"[^a-z0-9,]+", " ", text)
    for pattern, replacement in _SPELLING:
        text = re.sub(pattern, replacement, text)
    return re.sub(r"\s+", " ", text).strip()


def _read(clause: str) -> list[_Word]:
    """Longest phrases of one clause, in order."""
    words = _FILLERS.sub(" ", clause).split()
    found: list[_Word] = []
    position = 0
    context = False
    while position < len(words):
        for length in range(min(_LONGEST, len(words) - position), 0, -1):
            entry = _PHRASES.get(" ".join(words[position : position + length]))
            if entry:
                kind, name = entry
                found.append(_Word(kind, name, context))
                if kind not in ("side", "letter", "joint"):
                    context = False
                position += length
                break
        else:
            context = words[position] in _PREPOSITIONS or (
                context and words[position] in ("patient", "human")
            )
            position += 1
    return found


def _refused(why: str) -> Support:
    return Support(known=False, target=None, reason=f"{why}; known targets: {', '.join(TARGETS)}")


def understand(instruction: str) -> Support:
    """Which one target an instruction asks for, by the rules at the top of this module.

    Returns `Support(known=True, target=canonical name)`, or known=False with a reason that
    names the rule and lists what is known. Never raises.
    """
    text = _normalise(instruction)
    if not re.search("[a-z]", text):
        return _refused("the instruction names nothing")
    if _DESCRIBED.search(text):
        return _refused("a description in place of a name is not read")
    whole = text
    denied = re.search(rf"\b{_NEGATIONS}\b[^,]*\b(?:left|right)\b", text) is not None
    image_side = _IMAGE_SIDE.search(text) is not None
    text = _IMAGE_SIDE.sub(" ", text)
    text = re.sub(rf"\b{_NEGATIONS}\b[^,]*", " ", text)
    text = re.sub(rf"\b{_BESIDE}\b(?! and | the left and )[^,]*", " ", text)
    words = [word for clause in text.split(",") for word in _read(clause)]
    named = any(word.kind in ("target", "paired", "part", "place") for word in words)
    hint = None if named else _hint(whole)
    support = _refused(hint) if hint else _decide(words, image_side)
    if denied and support.target == "lungs":
        return _refused(
            "a side that is not meant does not say which lung is; name the patient's left or right"
        )
    return support


def _hint(text: str) -> str | None:
    """Why nothing seems to be named: only after a negation, or misspelled."""
    clauses = text.split(",")
    denied = [word.name for clause in clauses for word in _read(clause) if word.kind in ("target", "paired")]
    if denied:
        name = denied[0]
        return f"no known target is named: '{name}' stands only where it is not asked for"
    names = [phrase for phrase, (kind, _) in _PHRASES.items() if kind in ("target", "paired")]
    for clause in clauses:
        words = clause.split()
        for length in range(_LONGEST, 0, -1):
            for first in range(len(words) - length + 1):
                near = difflib.get_close_matches(" ".join(words[first : first + length]), names, 1, 0.8)
                if near:
                    return f"no known target is named; did you mean {near[0]}?"
    return None


def _decide(words: list[_Word], image_side: bool) -> Support:
    """Apply rules 3 to 5 to the words found."""
    things = [word for word in words if word.kind in ("target", "paired", "part", "place")]
    # "nuclei in the liver", "tumor of the spleen": the first thing is asked for, the rest is where.
    heads = [word for index, word in enumerate(things) if not (word.context and index > 0)]
    parts = [word.name for word in heads if word.kind == "part"]
    named = [word for word in heads if word.kind in ("target", "paired")]
    if parts:
        whole = f" of {named[0].name}" if named else ""
        return _refused(f"'{parts[0]}'{whole} is not a target that was taught")
    if not named:
        places = [word.name for word in things if word.kind == "place"]
        return _refused(
            f"'{places[0]}' is not a target that was taught" if places else "no known target is named"
        )
    joined = [place.name for place in heads if place.kind == "place" and _is_joined(place, words)]
    organs = {word.name for word in (*named, *(word for word in heads if word.name in joined))}
    if len(organs) > 1:
        return _refused(f"exactly one target must be named, here: {', '.join(sorted(organs))}")
    (organ,) = organs
    if named[0].kind == "target":
        return _whole(organ, words, named[0])
    return _sided(organ, words, image_side)


def _is_joined(place: _Word, words: list[_Word]) -> bool:
    """Whether "and" or the like stands between a place and a target, as in "the liver and the heart"."""
    at = next(index for index, word in enumerate(words) if word is place)
    return any(
        0 <= at + 2 * step < len(words)
        and words[at + step].kind == "joint"
        and words[at + 2 * step].kind in ("target", "paired")
        for step in (-1, 1)
    )


def _whole(organ: str, words: list[_Word], word: _Word) -> Support:
    """A target that has no sides: a side right before it names something else."""
    before = words[words.index(word) - 1] if words.index(word) else None
    if "hippocampus" in organ:  # there are two, and pictures of one were learned
        before = next((other for other in words if other.kind in ("side", "letter")), None)
    if before is not None and before.kind in ("side", "letter"):
        return _refused(f"'{before.name} {organ}' is not a target that was taught (only '{organ}')")
    return Support(known=True, target=organ)


def _sided(organ: str, words: list[_Word], image_side: bool) -> Support:
    """The side of an organ that exists twice; sides are the patient's."""
    sides = {word.name for word in words if word.kind in ("side", "letter")}
    joined = any(word.kind == "joint" and word.name in ("and", "both", "bilateral", "plus") for word in words)
    if organ == "lung" and joined and len(sides) != 1:
        return Support(known=True, target="lungs")
    if len(sides) == 1 and not any(word.name in ("both", "bilateral") for word in words):
        return Support(known=True, target=f"{sides.pop()} {organ}")
    if joined:
        return _refused(f"exactly one target must be named, here: the left and the right {organ}")
    if sides:
        return _refused(f"the sides contradict each other for the {organ}")
    if image_side:
        return _refused(f"a side of the image does not say which {organ}; name the patient's left or right")
    if organ == "lung":
        return Support(known=True, target="lungs")
    return _refused(f"the {organ} exists twice; name the patient's left or right")


def in_the_mirror(target: str) -> str:
    """What a target is called in a mirrored picture, where image left is the patient's right all the same.

    An organ that exists twice changes its side; "left ventricle" names a part, not a side.
    """
    side, _, organ = target.partition(" ")
    if organ not in _PAIRED or side not in OTHER_SIDE:
        return target
    return f"{OTHER_SIDE[side]} {organ}"


def by_convention(target: str, laterality: Laterality) -> str:
    """What a target is called in a picture where names of sides are read as if image left were the
    patient's right, as the embedded pair has learned them.
    """
    return in_the_mirror(target) if laterality == "mirrored" else target


def canonical_target(instruction: str) -> str | None:
    """The canonical name of the one target that an instruction asks for; None if there is not one."""
    return understand(instruction).target
