"""Read any of the command lines, and end its program."""

import argparse
import difflib
import errno
import os
import re
import select
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

SIGNAL_STATUS = 128  # to which shells add the number of the signal that ended a program
INTERRUPTED = SIGNAL_STATUS + 2  # by SIGINT
_FAILED = 1
_PIPE_CLOSED = SIGNAL_STATUS + 13  # by SIGPIPE, which Windows lacks
_PAIR = re.compile(r"[A-Za-z_]\w*=")
# argparse knows neither -1e-3 nor -3. nor -1,2; no option begins with a digit.
_NEGATIVE_NUMBER = re.compile(r"-(\.?\d|inf\b)")
_LONG_OPTION = re.compile(r"(--[A-Za-z][\w-]*)(=.*)?", re.DOTALL)


class UsageError(Exception):
    """A command line that cannot work; the message names the value, the rule and the remedy."""


class Parser(argparse.ArgumentParser):
    """Reads a command line the way people write it.

    Options of a command may stand before it, hyphens and underscores mean the same in their names, and what is misspelt
    is answered by what is close to it.

    :param options: Arguments of ``ArgumentParser``. Abbreviations are off: they change their meaning with every new
        option.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})
        self._negative_number_matcher = _NEGATIVE_NUMBER
        self._commands: Mapping[str, Parser] = {}
        self._synonyms: Mapping[str, str] = {}
        self._pair_options: set[str] = set()

    def add_pairs(self, name: str, text: str) -> None:
        """Add an option that takes pairs ``NAME=VALUE``, one or more; any other word ends them.

        :param name: Name of the option.
        :param text: Help of the option.
        """
        self._pair_options.add(name)
        metavar = "NAME=VALUE [NAME=VALUE ...]"
        self.add_argument(name, nargs=1, action="extend", default=[], type=_read_pair, metavar=metavar, help=text)

    def add_commands(self, synonyms: Mapping[str, str] | None = None) -> "argparse._SubParsersAction[Parser]":
        """Add the place of a command; ``add_parser`` of what is returned adds one.

        :param synonyms: Words that people may take for commands, and the commands that they mean.
        """
        self._synonyms = synonyms or {}
        commands: argparse._SubParsersAction[Parser] = self.add_subparsers(required=True, metavar="COMMAND")
        self._commands = commands.choices
        self.epilog = f"Options go before or after the command; '{self.prog} COMMAND --help' lists them."
        return commands

    def read(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Read a command line.

        :param arguments: The words after the program's name; None takes them from the command line.
        :raises SystemExit: With 2 if it cannot be read, after saying why; with 0 after ``--help``.
        """
        words = _write_with_hyphens(sys.argv[1:] if arguments is None else arguments)
        words, parser = self._put_commands_first(words)
        _check_option_names(words, parser)
        options, left = self.parse_known_args(_name_every_pair(words, parser._pair_options))
        if left:  # argparse would name the help of the whole program
            parser.error(f"unrecognized arguments: {' '.join(left)}")
        return options

    def error(self, message: str) -> NoReturn:
        """Say in a line what is wrong; the usage of a command with fifty options would hide it."""
        help_hint = "" if "--help" in message else f" (see '{self.prog} --help')"
        self.exit(2, f"{self.prog}: error: {message}{help_hint}\n")

    def _put_commands_first(self, words: list[str]) -> "tuple[list[str], Parser]":
        """Put the command, and the command of that if it has some, before all options; return its parser too."""
        if not self._commands or not words or words[0] in ("-h", "--help"):
            return words, self
        command = self._find_command(words)
        rest, parser = self._commands[command]._put_commands_first(words[1:])
        return [command, *rest], parser

    def _find_command(self, words: list[str]) -> str:
        """Put the command before its options, and return its name."""
        if words[0].startswith("-"):
            for i, word in enumerate(words):
                if word in self._commands and not _takes_value(self._commands[word], words[i - 1]):
                    words.insert(0, words.pop(i))
                    break
        if words[0] not in self._commands:
            self._refuse_command(words)
        return words[0]

    def _refuse_command(self, words: Sequence[str]) -> NoReturn:
        known = ", ".join(self._commands)
        # After options, what is meant to be the command may be anywhere.
        others = [word for word in words if not word.startswith("-") and _suggest(word, self._commands)]
        word = others[0] if others and words[0].startswith("-") else words[0]
        if word.startswith("-"):
            self.error(f"no command is given; choose one of {known}.")
        meant = self._synonyms.get(word.lower(), word)
        self.error(f"{word!r} is not a command; {_suggest(meant, self._commands)}choose one of {known}.")


def _write_with_hyphens(words: Sequence[str]) -> list[str]:
    """Spell the names of options with hyphens; words after ``--`` are not options."""
    end = words.index("--") if "--" in words else len(words)
    found = [_LONG_OPTION.fullmatch(word) for word in words[:end]]
    written = [
        match[1].replace("_", "-") + (match[2] or "") if match else word
        for match, word in zip(found, words, strict=False)
    ]
    return [*written, *words[end:]]


def _read_pair(word: str) -> str:
    if not _PAIR.match(word):
        raise argparse.ArgumentTypeError(f"{word} is not written NAME=VALUE, such as map_name=8x8.")
    return word


def _name_every_pair(words: Sequence[str], options: set[str]) -> list[str]:
    """Write an option again before each of its pairs: argparse would take any word after them for one."""
    named: list[str] = []
    option = None
    for i, word in enumerate(words):
        if word.partition("=")[0] in options:
            option = word.partition("=")[0]
        elif option is not None and words[i - 1] != option:
            option = option if _PAIR.match(word) else None
            named += [] if option is None else [option]
        named.append(word)
    return named


def _list_options(parser: argparse.ArgumentParser) -> list[str]:
    return list(parser._option_string_actions)


def _takes_value(parser: argparse.ArgumentParser, word: str) -> bool:
    action = parser._option_string_actions.get(word)
    return action is not None and action.nargs != 0


def _check_option_names(words: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Refuse unknown options; argparse would first miss what they were meant to be."""
    known = _list_options(parser)
    for word in words:
        if word == "--":
            break
        found = _LONG_OPTION.fullmatch(word)
        if found is not None and found[1] not in known:
            hint = _suggest(found[1], known)
            parser.error(f"unrecognized arguments: {word}; {hint}see '{parser.prog} --help'.")


def _suggest(word: str, known: Iterable[str]) -> str:
    # Without the hyphens, which make "--lr" look like "--help", and by initials, which "lr" is.
    names = {name.lstrip("-"): name for name in known if len(name) > 2}
    asked = word.lower().lstrip("-")
    shorts = [name for name in names if "".join(part[0] for part in name.split("-") if part) == asked]
    beginnings = [name for name in names if name.startswith(asked)]
    close = [names[name] for name in shorts or difflib.get_close_matches(asked, names, n=1) or beginnings]
    return f"did you mean {close[0]!r}? If not, " if close else ""


def end_well(main: Callable[[], int | None]) -> int:
    """Call a program's main function, and turn Ctrl-C and output that cannot be written into an exit status.

    A reader that has seen enough, such as ``head``, closes the pipe: that is worth neither words nor a traceback.

    :param main: Best imports what takes long itself, for Ctrl-C comes during imports too.
    :return: What it returns, or 130 after Ctrl-C, 141 if the output's pipe is closed, 1 if another one is or the disk
        is full.
    """
    # Whoever started the program may have closed them.
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
    _escape_unknown_characters()
    try:
        try:
            return main() or 0
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError as error:
        if _is_output_read():  # it was another pipe, or a connection
            with suppress(OSError):
                sys.stderr.write(f"a pipe or a connection was closed at its other end: {error.strerror}; try again.\n")
            return _FAILED
        _give_output_up()
        return _PIPE_CLOSED
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _give_output_up()
        sys.stderr.write(f"the output cannot be written: {error.strerror}.\n")
        return _FAILED


def _escape_unknown_characters() -> None:
    """Write what the output's encoding does not know as escapes: what was done must not end in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        # Another way that was asked for, such as PYTHONIOENCODING=ascii:replace, raises nothing.
        if getattr(stream, "errors", None) in ("strict", "surrogateescape") and hasattr(stream, "reconfigure"):
            with suppress(OSError):  # what the stream writes to may have been exchanged since it was opened
                stream.reconfigure(errors="backslashreplace")


def _is_output_read() -> bool:
    """Return whether the output can still be written."""
    try:
        sys.stdout.flush()
        if not hasattr(select, "poll"):  # on Windows
            return True
        watch = select.poll()
        watch.register(sys.stdout.fileno(), select.POLLOUT)
        return not any(events & select.POLLERR for _, events in watch.poll(0))
    except BrokenPipeError:
        return False
    except (OSError, ValueError):  # it is no file, as in a test
        return True


def _give_output_up() -> None:
    """Keep Python from writing what is left at its end, and from complaining that it cannot."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
