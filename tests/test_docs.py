"""What the code and the documents say of each other."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_section_of_the_method_that_is_named_exists() -> None:
    sections = set(re.findall(r"^## (\d)\. ", (ROOT / "docs" / "method.md").read_text(), re.MULTILINE))
    named = {
        (number, str(file.relative_to(ROOT)))
        for folder, kind in (("src", "*.py"), ("tests", "*.py"), ("benchmarks", "*.py"), ("docs", "*.md"))
        for file in (ROOT / folder).rglob(kind)
        for both in re.findall(r"(?:METHOD|method\.md,) sections? (\d)(?: and (\d))?", file.read_text())
        for number in both
        if number
    }
    assert len(named) > 20 and {number for number, _ in named} <= sections, named
