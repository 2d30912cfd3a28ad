"""Whether a teacher's text may become a thought: it speaks of the picture and of nothing beside it.

The student sees a picture, a painted mask and an instruction, so a thought that mentions a ground
truth, an annotation, a reference, numbers of either or how it was asked for would teach it to
pretend. Patterns match whole words; what is harmless ("with reference to", "a labrum") passes.
"""

from __future__ import annotations

import re
import unicodedata

MAX_CHARACTERS = 700
_LEAST_WORDS = 4

_MASK = r"(?:masks?|segmentations?|delineations?)"
_LINE = r"(?:contours?|outlines?|boundar(?:y|ies)|borders?|regions?)"
_GIVEN = r"(?:reference|given|provided|supplied|known|hidden|expert|manual|gold)"
_TRUE = r"(?:true|real|actual|correct|right|target|desired|expected|ideal|perfect|intended)"
_GAVE = r"(?:given|provided|supplied|handed)"
_TOLD = r"(?:given|provided|supplied|handed|shown|told|informed|instructed)"
_BEING = r"(?:(?:that|which|i|we|is|are|was|were|has|have|had|been|am|also|'m|'ve)\s+)*"

_LEAKS: tuple[tuple[str, str], ...] = (
    ("the ground truth", r"\bground[\s_-]*truth\w*|(?-i:\bGTs?\b)|\bgt\s+(?:mask|contour|label)"),
    ("an annotation", r"\b(?:un)?annotat\w*"),
    ("a label", r"\b(?:un)?label(?:s|l?ed|l?ing)?\b"),
    ("a reference", r"\bthe\s+references?\b(?!\s+(?:point|line|frame)s?\b)"),
    ("a reference", rf"\breference\s+(?:standards?|images?|data|{_MASK}|{_LINE})\b"),
    ("a reference", r"\bgold(?:en)?[\s-]+(?:standard|mask)s?\b"),
    ("a given mask", rf"\b{_GIVEN}\s+(?:{_MASK}|{_LINE})\b"),
    ("a given mask", rf"\b{_TRUE}\s+{_MASK}\b"),
    ("a given mask", rf"\b(?:{_MASK}|contours?|outlines?)\s+{_BEING}{_GAVE}\b"),
    ("a score", r"\biou\b|\bintersection[\s-]+over[\s-]+union\b|\bjaccard\b|(?-i:\bDSC\b)"),
    ("a score", r"\bdice\s*(?:[=:]|scores?\b|coefficient|index|similarity|of\b|is\b|value)"),
    ("a score", r"\b(?:false|true)[\s-]+(?:positive|negative)s?\b"),
    ("a score", r"\b(?:overlap|accuracy|precision|recall)\s+(?:of|is|at)\s+(?:about\s+|around\s+)?\d"),
    ("a number", r"\d\s*%|\bper\s?cent(?:ages?)?\b"),
    ("a number", r"(?<![\w.])\d*\.\d+(?![\w.])"),
    ("a coordinate", r"[(\[]\s*[-+]?[\d.]+\s*[,;]\s*[-+]?[\d.]+\s*[)\]]"),
    ("a coordinate", r"\b[xy]\s*(?:=|:|≈|~|is|of|near|around)\s*\d|\bco-?ordinates?\b"),
    ("a coordinate", r"\b\d+\s*(?:px|pixels?)\b|\b(?:pixels?|row|column)\s+\d"),
    ("how it was asked", rf"\b(?:i|we)(?:'ve|'m|'re)?\s+{_BEING}{_TOLD}\b"),
    ("how it was asked", r"\b(?:as|was|were)\s+(?:told|instructed|informed)\b|\bfound\s+out\b"),
    ("how it was asked", r"\b(?:simulators?|oracles?|teachers?|students?|answer\s+key|privileged)\b"),
    (
        "how it was asked",
        rf"\b(?:hints?|facts?|information|notes?)\s+{_BEING}(?:{_GAVE}|listed|above|below)\b",
    ),
    ("how it was asked", r"\b(?:hints?|facts?|notes?)\s+(?:says?|tells?|states?|confirms?)\b"),
    ("how it was asked", r"\b(?:chosen|selected|suggested|prescribed|given)\s+action\b|\bsystem\s+prompt\b"),
    ("how it was asked", r"\bas\s+an?\s+(?:ai|language)\b|\blanguage\s+model\b"),
)
_PATTERNS = tuple((what, re.compile(pattern, re.IGNORECASE)) for what, pattern in _LEAKS)
_MARKUP = re.compile(r"<\s*/?\s*\w+[^<>]*>|</|```|\[/?\w+\]|[{}]|</?think", re.IGNORECASE)


def tidy(text: str) -> str:
    """One line without invisible characters; compatibility forms become plain ones."""
    text = unicodedata.normalize("NFKC", text)
    text = "".join(" " if letter.isspace() else letter for letter in text)
    text = "".join(letter for letter in text if unicodedata.category(letter) not in ("Cf", "Cc", "Co", "Cs"))
    return re.sub(r"\s+", " ", text.replace("’", "'")).strip()


def fault(text: str) -> str | None:
    """Why a tidy text cannot be a thought, as "it ..."; None where it can."""
    if _MARKUP.search(text):
        return "it holds tags or markup"
    if len(text) > MAX_CHARACTERS:
        return f"it has more than {MAX_CHARACTERS} characters"
    if len(re.findall(r"[A-Za-z]{2,}", text)) < _LEAST_WORDS:
        return "it is not a sentence"
    if "\N{REPLACEMENT CHARACTER}" in text:
        return "it holds damaged characters"
    for what, pattern in _PATTERNS:
        if pattern.search(text):
            return f"it mentions {what}"
    return None
