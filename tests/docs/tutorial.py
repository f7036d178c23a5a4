"""Runs the blocks of a page in their order, as a reader does: ``python -m tests.docs.tutorial PAGE PORT``.

The working folder stands for the reader's checkout. Python blocks share their names, as the cells of a notebook do;
CONTRIBUTING.md says what else a block can be. A block that fails ends the run with its error.
"""

import argparse
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from benchmarks.lib.pages import Block, list_blocks

# A page's server leaves port 8000 to the one that README has started.
DOCUMENTED_PORT = "8001"
_START_SECONDS = 300.0
# Share of the steps that a block trains for here, and the fewest; more than the most are of trainings that it stops.
_STEP_SHARE, _FEWEST_STEPS, _MOST_STEPS = 0.25, 1_024, 20_000
_STEPS = re.compile(r"""((?:\.learn\(|total_timesteps(?:=|": )|--total-timesteps |-n ))([\d_]+)""")
_POLL_SECONDS = 0.05


def make_strict(code: str) -> list[str]:
    """Return the command that runs a bash block and fails where one of its commands or an answer to curl does."""
    return ["bash", "-ec", code.replace("curl ", "curl --silent --fail-with-body ")]


def train_less(code: str) -> str:
    """Let a block train for fewer steps: it is to run, and what it learns is for the benchmarks to say."""

    def shorten(found: re.Match[str]) -> str:
        n_steps = int(found[2])
        if n_steps > _MOST_STEPS:
            return found[0]
        return f"{found[1]}{max(min(n_steps, _FEWEST_STEPS), int(_STEP_SHARE * n_steps))}"

    return _STEPS.sub(shorten, code)


@contextmanager
def _run_server(code: str, url: str) -> Iterator[None]:
    # Else the shell might stay between this process and the server, which is to be ended and waited for. The settings
    # that stand before the command make it no word that exec understands.
    server = subprocess.Popen(["bash", "-ec", f"exec env {code}"])
    try:
        _wait_for_answer(server, url)
        yield
    finally:
        server.terminate()
        server.wait()


def _wait_for_answer(server: "subprocess.Popen[bytes]", url: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            urlopen(f"{url}/health").close()
            return
        except (URLError, ConnectionError) as error:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server does not answer; its exit status is {server.poll()}.") from error
            time.sleep(_POLL_SECONDS)


def run_page(page: Path, port: str) -> None:
    """Run all blocks of a page.

    :param port: Port of the page's server here; its blocks name ``DOCUMENTED_PORT``.
    """
    url = f"http://localhost:{port}"
    names: dict[str, Any] = {"__name__": "__main__"}
    with ExitStack() as servers:
        for block in list_blocks(page.read_text()):
            block = block._replace(
                code=re.sub(rf"(localhost:|--port ){DOCUMENTED_PORT}\b", rf"\g<1>{port}", block.code)
            )
            if block.is_server:
                servers.close()
                servers.enter_context(_run_server(block.code, url))
            else:
                _run_block(block, page, names)


def _run_block(block: Block, page: Path, names: dict[str, Any]) -> None:
    if block.title is not None:
        Path(block.title).write_text(block.code)
    elif block.language == "python":
        # As many lines as are above the block, so that a traceback tells the line of the page.
        exec(compile("\n" * (block.line - 1) + train_less(block.code), str(page), "exec"), names)
    elif block.language == "bash":
        subprocess.run(make_strict(train_less(block.code)), check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", metavar="PAGE", type=Path)
    parser.add_argument("port", metavar="PORT")
    run_page(**vars(parser.parse_args()))
