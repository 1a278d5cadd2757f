import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_test_named_in_reliability_exists() -> None:
    there = {name for path in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}
    named = set(re.findall(r"\b(test_\w+)\b(?!\.py)", (ROOT / "docs" / "reliability.md").read_text()))
    assert len(named) > 40 and not named - there
