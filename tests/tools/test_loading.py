import pytest

from ibisagent.errors import InputError
from ibisagent.tools import load_tool


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("sam3:x", "choose from"),
        ("sam2", "choose from"),
        ("", "choose from"),
        ("classical:x", "named without a path"),
        ("embedded:x", "needs its weights"),
        ("medsam2:x@1024", "512 pixels"),
        ("medsam2:/nowhere/MedSAM2_latest.pt", "checkpoint"),
        ("sam2:/nowhere/folder@512", "checkpoint"),
    ],
)
def test_specs_that_name_no_tool(spec: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_tool(spec)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_classical_tool_by_name() -> None:
    assert load_tool("classical").name == "classical"
