"""RL Baselines3 Zoo with GRPO among its algorithms.

``python -m grpo_zoo --algo grpo --env CartPole-v1`` trains with the zoo's ``train.py`` and every option that it
has; ``python -m grpo_zoo enjoy --algo grpo --env CartPole-v1`` plays what came of it. Without ``--conf-file`` the
hyperparameters are those of ``presets.yml``. In a script of one's own, ``register()`` is enough.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.resources import files

from grpo import GRPO

_SCRIPTS = ("train", "enjoy")


def register() -> None:
    """Make ``"grpo"`` one of the zoo's algorithms in this process.

    :raises ImportError: If the zoo is not installed, or something that it needs.
    """
    try:
        zoo = import_module("rl_zoo3")
    except ImportError as error:
        raise ImportError(f"RL Baselines3 Zoo cannot be imported ({error}); pip install rl_zoo3.") from error
    zoo.ALGOS["grpo"] = GRPO


def complete_arguments(arguments: Sequence[str]) -> list[str]:
    """Spell out what may be left out of the command line: the script, the algorithm and where its presets are.

    :param arguments: Options of the zoo's script, after its name unless that is ``train``.
    """
    options = list(arguments)
    script = options.pop(0) if options and options[0] in _SCRIPTS else "train"
    words = [word for option in options for word in option.split("=", 1)]
    if "--algo" not in words:
        options += ["--algo", "grpo"]
    algorithm = words[words.index("--algo") + 1 :][:1] if "--algo" in words else ["grpo"]
    if script == "train" and algorithm == ["grpo"] and not {"-conf", "--conf-file"} & set(words):
        options += ["--conf-file", str(files("grpo_core.options") / "presets.yml")]
    return [script, *options]


def main() -> None:
    """Run one of the zoo's scripts."""
    try:
        register()
    except ImportError as error:
        sys.exit(str(error))
    script, *sys.argv[1:] = complete_arguments(sys.argv[1:])
    # Not rl_zoo3.cli, which imports what only the zoo's plots need.
    getattr(import_module(f"rl_zoo3.{script}"), script)()


if __name__ == "__main__":
    main()
