"""How all command lines are read, and how they end."""

import argparse
import io
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from grpo_cli.commands import make_parser as make_library_parser
from grpo_client.terminal.cli import make_parser as make_client_parser
from grpo_terminal import Parser, end_well

ROOT = Path(__file__).parent.parent


def make_parser() -> Parser:
    parser = Parser(prog="cook")
    commands = parser.add_commands({"fire": "bake"})
    bake = commands.add_parser("bake")
    bake.add_argument("dish")
    bake.add_argument("--oven-heat", type=int, default=180)
    bake.add_argument("--with", nargs="+", default=[])
    bake.add_argument("--quietly", action="store_true")
    bake.add_pairs("--spices", "what to add")
    commands.add_parser("boil").add_argument("--lid", action="store_true")
    return parser


@pytest.mark.parametrize(
    "words",
    [
        ["bake", "pie", "--oven-heat", "200", "--quietly"],
        ["bake", "--oven_heat", "200", "--quietly", "pie"],
        ["--oven_heat=200", "--quietly", "bake", "pie"],
        ["--oven-heat", "200", "bake", "--quietly", "pie"],
        ["--quietly", "bake", "--oven_heat=200", "--", "pie"],
    ],
    ids=" ".join,
)
def test_a_command_line_is_read_in_any_order_and_spelling(words: list[str]) -> None:
    options = make_parser().read(words)
    assert (options.dish, options.oven_heat, options.quietly) == ("pie", 200, True)


@pytest.mark.parametrize("number", ["-5", "-1e-3", "-3.", "-.5", "-1,2", "-inf"])
def test_what_begins_like_a_negative_number_is_no_option(number: str) -> None:
    options = make_parser().read(["bake", number, "--with", number, number])
    assert (options.dish, vars(options)["with"]) == (number, [number, number])


def test_a_value_is_no_command_and_keeps_its_underscores() -> None:
    # The first "bake" is what is baked with.
    options = make_parser().read(["--with", "bake", "--quietly", "bake", "my_pie"])
    assert (options.dish, vars(options)["with"]) == ("my_pie", ["bake"])
    assert make_parser().read(["bake", "--", "--my_pie"]).dish == "--my_pie"


@pytest.mark.parametrize(
    "words",
    [
        ["bake", "--spices", "salt=1", "oil=a=b", "pie"],
        ["bake", "pie", "--spices", "salt=1", "oil=a=b"],
        ["bake", "--spices=salt=1", "oil=a=b", "pie", "--quietly"],
        ["bake", "--spices", "salt=1", "--spices", "oil=a=b", "--", "pie"],
        ["--spices", "salt=1", "oil=a=b", "bake", "./pie"],
    ],
    ids=" ".join,
)
def test_pairs_end_with_a_word_that_is_none(words: list[str]) -> None:
    options = make_parser().read(words)
    assert (options.dish.removeprefix("./"), options.spices) == ("pie", ["salt=1", "oil=a=b"])
    assert make_parser().read(["bake", "pie"]).spices == []


def list_options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """List the options of all commands with the command that has them."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from list_options(command)
        elif action.option_strings:
            yield parser.prog, action


@pytest.mark.parametrize("parser", [make_library_parser(), make_client_parser()], ids=lambda parser: parser.prog)
def test_an_option_that_takes_several_words_adds_to_them_when_it_is_repeated(parser: Parser) -> None:
    several = [(command, action) for command, action in list_options(parser) if action.nargs in ("+", "*")]
    assert several
    for command, action in several:
        assert isinstance(action, argparse._ExtendAction), f"{command} {action.option_strings[-1]}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bakke", "pie"], "'bakke' is not a command; did you mean 'bake'? If not, choose one of bake, boil."),
        (["--oven-heat", "200", "bakke", "pie"], "'bakke' is not a command; did you mean 'bake'?"),
        (["Fire"], "'Fire' is not a command; did you mean 'bake'? If not, choose one of bake, boil."),
        (["fry"], "'fry' is not a command; choose one of bake, boil."),
        (["--lid"], "no command is given; choose one of bake, boil."),
        ([], "the following arguments are required: COMMAND"),
        (["bake", "--spices", "pie"], "argument --spices: pie is not written NAME=VALUE, such as map_name=8x8."),
        (
            ["bake", "--oven-heet", "200"],
            "cook bake: error: unrecognized arguments: --oven-heet; did you mean '--oven-h",
        ),
        (["bake", "--oh", "200"], "cook bake: error: unrecognized arguments: --oh; did you mean '--oven-heat'? If not"),
        (["bake", "pie", "--oven"], "unrecognized arguments: --oven; did you mean '--oven-heat'?"),
        (["bake", "pie", "cake"], "cook bake: error: unrecognized arguments: cake (see 'cook bake --help')"),
        (
            ["--oven-heat", "1", "boil"],
            "cook boil: error: unrecognized arguments: --oven-heat; see 'cook boil --help'.",
        ),
    ],
    ids=str,
)
def test_what_is_misspelt_is_answered_by_what_is_close(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        make_parser().read(words)
    assert ended.value.code == 2
    written = capsys.readouterr().err
    assert said in written
    assert written.count("\n") == 1  # a usage of fifty options would hide it
    assert "--help" in written


def test_help_says_where_options_go(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        make_parser().read(["--help"])
    assert ended.value.code == 0
    assert "'cook COMMAND --help' lists them" in " ".join(capsys.readouterr().out.split())


def run_main(
    body: str, *, stdout: int | None = subprocess.PIPE, options: Sequence[str] = (), encoding: str = "utf-8"
) -> subprocess.CompletedProcess[str]:
    """Run a program whose main function has this body."""
    code = (
        f"import os, signal, sys\nfrom grpo_terminal import end_well\ndef main():\n    {body}\nsys.exit(end_well(main))"
    )
    command = [sys.executable, *options, "-c", code]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding=encoding.partition(":")[0],
    )


def test_an_exit_status_is_kept() -> None:
    assert [run_main(f"return {status}").returncode for status in (None, 0, 3)] == [0, 0, 3]


def test_an_interrupt_ends_a_program_without_a_traceback() -> None:
    ended = run_main("os.kill(os.getpid(), signal.SIGINT)")
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGINT, "")


@pytest.mark.parametrize("options", [[], ["-u"]], ids=["buffered", "unbuffered"])
def test_a_pipe_that_nobody_reads_ends_a_program_without_a_traceback(options: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = run_main("print('x' * 100_000)", stdout=writing, options=options)
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("options", [[], ["-u"]], ids=["buffered", "unbuffered"])
def test_another_pipe_that_is_closed_is_not_taken_for_the_output(options: list[str]) -> None:
    ended = run_main("print('x'); a, b = os.pipe(); os.close(a); os.write(b, b'x')", options=options)
    assert (ended.returncode, ended.stdout) == (1, "x\n")
    assert ended.stderr == "a pipe or a connection was closed at its other end: Broken pipe; try again.\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full disk to write to")
def test_a_full_disk_is_reported_in_a_line() -> None:
    with Path("/dev/full").open("w") as full:
        ended = run_main("print('x')", stdout=full.fileno())
    assert (ended.returncode, ended.stderr) == (1, "the output cannot be written: No space left on device.\n")


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("ascii", "\\u65e5 \\xe9"),
        ("ascii:surrogateescape", "\\u65e5 \\xe9"),
        ("latin-1", "\\u65e5 \xe9"),
        ("ascii:replace", "? ?"),
    ],
)
def test_a_character_that_the_output_cannot_hold_is_written_as_an_escape(encoding: str, written: str) -> None:
    ended = run_main(r"print('\u65e5 \xe9')", encoding=encoding)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{written}\n", "")


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-"])
def test_an_exit_status_is_kept_where_nothing_can_be_said(closed: str) -> None:
    script = shlex.join([sys.executable, str(ROOT / "run_api.py"), "--port", "99999"])
    assert subprocess.run(f"exec {script} {closed}", shell=True).returncode == 2


def test_an_output_that_knows_nothing_of_encodings_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    assert end_well(lambda: output.write("\u65e5")) == 1  # one character
    assert output.getvalue() == "\u65e5"
