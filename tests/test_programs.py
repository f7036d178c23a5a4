"""What `python -m` starts beside the product explains itself with `--help`, instead of starting its work."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUARD = '\nif __name__ == "__main__":\n'
# Whose command lines are read elsewhere: by run_api, and by nobody but the fixture that starts it.
OTHERS = {"tests/soak/leaking_server.py", "tests/preloaded.py"}
PROGRAMS = [
    name
    for folder in ("benchmarks", "docs", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if GUARD in path.read_text() and (name := path.relative_to(ROOT).as_posix()) not in OTHERS
]


def test_they_are_found() -> None:
    assert {"benchmarks/report.py", "docs/branching_picture.py", "tests/chaos/kills.py"} <= {*PROGRAMS}


@pytest.mark.parametrize("name", PROGRAMS)
def test_its_command_line_is_parsed(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "argparse.ArgumentParser(" in text
    assert "sys.argv[" not in text.partition(GUARD)[2].replace("sys.argv[1:]", "")
