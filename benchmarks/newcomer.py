"""Follow README.md from a bare clone to an answered inference, and time each step: ``python -m benchmarks.newcomer``.

It runs the commands of the page's first ``console`` block, and the ``bash`` and ``python`` blocks below it, exactly as
written, until one of them has asked ``/inference``.
"""

import argparse
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.error import URLError
from urllib.request import urlopen

from benchmarks.lib.pages import Block, list_blocks

ROOT = Path(__file__).parent.parent
_DOCUMENTED_URL = "http://localhost:8000"
_SERVE, _TEST = "make serve", "make test"
_INSTALL_SECONDS = 3600.0
_COMMAND_SECONDS = 3600.0
_END_SECONDS = 60.0
_POLL_SECONDS = 0.1


class ReadmeError(RuntimeError):
    """README.md does not lead to an answered inference."""


def list_commands(blocks: Sequence[Block]) -> list[str]:
    """Return the commands of the first ``console`` block, without prompts and comments.

    Commands that clone and enter the clone are left out.

    :raises ReadmeError: If there is none that starts the server.
    """
    block = next((block for block in blocks if block.language == "console"), None)
    lines = [] if block is None else block.code.splitlines()
    commands = [line.removeprefix("$ ").split(" #")[0].strip() for line in lines]
    commands = [command for command in commands if command and not command.startswith(("#", "git clone", "cd "))]
    if _SERVE not in commands:
        raise ReadmeError(f"the first console block of README.md does not say '{_SERVE}'; it says {commands}.")
    return commands


def list_examples(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks to run, up to the first one that asks ``/inference``.

    :raises ReadmeError: If none does.
    """
    examples = [block for block in blocks if block.language in ("bash", "python")]
    for i, block in enumerate(examples):
        if "/inference" in block.code:
            return examples[: i + 1]
    raise ReadmeError("no bash or python block of README.md asks /inference.")


def format_seconds(seconds: float) -> str:
    """Format a duration in minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:2} s"


class Newcomer:
    """Runs commands and blocks of the page in a clone.

    :param clone: Folder of the clone.
    :param port: Port of the server; another than 8000 replaces it in the blocks.
    """

    def __init__(self, clone: Path, port: int) -> None:
        self._clone = clone
        self._url = f"http://localhost:{port}"
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPO_")}
        self._environment |= {"GRPO_PORT": str(port)} if self._url != _DOCUMENTED_URL else {}
        self._python = str(clone / ".venv" / "bin" / "python")

    @contextmanager
    def serve(self) -> Iterator[None]:
        """Run ``make serve`` until the block ends."""
        log_path = self._clone / "make-serve.log"
        with log_path.open("wb") as log:
            server = self._start(["bash", "-c", f"exec {_SERVE}"], log)
            try:
                self._wait_for_answer(server, log_path)
                yield
            finally:
                _end(server)

    def run_command(self, command: str) -> None:
        """Run another command of the console block.

        :raises subprocess.CalledProcessError: If it fails.
        """
        subprocess.run(
            ["bash", "-c", command], cwd=self._clone, env=self._environment, check=True, timeout=_COMMAND_SECONDS
        )

    def run_example(self, block: Block) -> str:
        """Run a block and return what it printed.

        :raises subprocess.CalledProcessError: If it fails.
        """
        code = block.code.replace(_DOCUMENTED_URL, self._url)
        command = ["bash", "-ec", code] if block.language == "bash" else [self._python, "-c", code]
        finished = subprocess.run(
            command,
            cwd=self._clone,
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=_COMMAND_SECONDS,
        )
        return finished.stdout

    def _start(self, command: list[str], log: IO[bytes]) -> "subprocess.Popen[bytes]":
        # A session of its own, so that make's id names all that make starts.
        return subprocess.Popen(
            command,
            cwd=self._clone,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _wait_for_answer(self, server: "subprocess.Popen[bytes]", log_path: Path) -> None:
        deadline = time.monotonic() + _INSTALL_SECONDS
        while True:
            try:
                urlopen(f"{self._url}/health", timeout=10).close()
                return
            except (URLError, ConnectionError) as error:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise ReadmeError(f"'{_SERVE}' does not answer: {log_path.read_text()[-2000:]}") from error
                time.sleep(_POLL_SECONDS)


def _end(server: "subprocess.Popen[bytes]") -> None:
    server.send_signal(signal.SIGTERM)  # make passes it on
    try:
        server.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def follow_readme(repository: Path, clone: Path, port: int, environment: Path | None, with_tests: bool) -> float:
    """Clone, follow the page and print the time of each step; return the sum, in seconds.

    :param environment: Virtual environment to use instead of a new one.
    :param with_tests: Whether to run ``make test`` too, which no inference needs.
    :raises ReadmeError: If the page does not lead to an answered inference.
    """
    began = time.monotonic()
    subprocess.run(["git", "clone", "--quiet", str(repository), str(clone)], check=True)
    last = _report("git clone", began)
    blocks = list_blocks((clone / "README.md").read_text())
    commands, examples, newcomer = list_commands(blocks), list_examples(blocks), Newcomer(clone, port)
    if environment is not None:
        _borrow(environment, clone / ".venv")

    with newcomer.serve():
        last = _report(f"{_SERVE}, until it answers", last)
        printed = ""
        for block in examples:
            printed = newcomer.run_example(block)
            last = _report(f"the {block.language} block in line {block.line}", last)
        if "action" not in printed:
            raise ReadmeError(f"the last block was to print an action, but printed {printed[-500:]!r}.")
        print(printed.splitlines()[-1])
    total_seconds = last - began
    for command in commands:
        if command not in (_SERVE, _TEST) or (command == _TEST and with_tests):
            newcomer.run_command(command)
            last = _report(command, last)
    return total_seconds


def _borrow(environment: Path, own: Path) -> None:
    """Link the parts of a virtual environment, and mark it as complete for make."""
    own.mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (own / name).symlink_to((environment / name).resolve())
    for marker in (".installed", ".installed-dev"):
        (own / marker).touch()


def _report(step: str, began: float) -> float:
    now = time.monotonic()
    print(f"{format_seconds(now - began):>12}  {step}", flush=True)
    return now


def main() -> None:
    """Follow the page in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, default=ROOT, help="repository to clone, as committed")
    parser.add_argument("--port", type=int, default=8000, help="port of the server (%(default)s)")
    parser.add_argument("--venv", type=Path, help="virtual environment to use instead of a new one")
    parser.add_argument("--tests", action="store_true", help="run 'make test' too")
    options = parser.parse_args()
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", options.port)) == 0:
            parser.error(f"something listens on port {options.port} already; end it, or take another --port.")
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        seconds = follow_readme(options.repository, clone, options.port, options.venv, options.tests)
    print(f"{format_seconds(seconds):>12}  from nothing to an answered inference")


if __name__ == "__main__":
    main()
