"""Generate the client that blocks from the one that awaits: ``python -m tests.grpo_client.generate``."""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

PACKAGE = Path(__file__).parent.parent.parent / "grpo_client"
TARGET = PACKAGE / "client.py"
REPLACEMENTS = {
    "AsyncClient": "Client",
    "AsyncEvents": "Events",
    "AsyncJob": "Job",
    "aclose": "close",
    "aclosing": "closing",
    "anyio": "time",
    "aread": "read",
    "asynccontextmanager": "contextmanager",
}
HEADER = '"""The client that blocks; generated from ``async_client.py`` by ``make format``: edit that file."""\n'


def generate_client() -> str:
    """Return the source of ``client.py``, formatted."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "async_client.py"
        shutil.copy(PACKAGE / source.name, source)
        unasync.unasync_files([str(source)], [unasync.Rule(source.name, TARGET.name, REPLACEMENTS)])
        text = source.with_name(TARGET.name).read_text()
    text = HEADER + text.split("\n", 1)[1]
    for command in (["check", "--select", "I", "--fix", "--quiet"], ["format"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(TARGET), "-"]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True, timeout=300).stdout
    return text


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    TARGET.write_text(generate_client())
