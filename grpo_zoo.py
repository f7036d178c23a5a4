"""RL Baselines3 Zoo with GRPO among its algorithms.

``python -m grpo_zoo --algo grpo --env CartPole-v1`` trains with the zoo's ``train.py`` and all its options, and
``python -m grpo_zoo enjoy --algo grpo --env CartPole-v1`` plays the policy. Without ``--conf-file``, hyperparameters
come from ``presets.yml``. Your own script only needs ``register()``.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.resources import files

from grpo import GRPO

_SCRIPTS = ("train", "enjoy")


def register() -> None:
    """Add ``"grpo"`` to the zoo's algorithms in this process.

    :raises ImportError: If the zoo, or a package that it needs, is not installed.
    """
    try:
        zoo = import_module("rl_zoo3")
    except ImportError as error:
        raise ImportError(f"RL Baselines3 Zoo cannot be imported ({error}); pip install rl_zoo3.") from error
    zoo.ALGOS["grpo"] = GRPO


def complete_arguments(arguments: Sequence[str]) -> list[str]:
    """Fill in what a command line leaves out: the script, the algorithm and the file of its presets.

    :param arguments: Name of the zoo's script, which may be left out for ``train``, and its options.
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
    # rl_zoo3.cli would import packages that only the zoo's plots need.
    getattr(import_module(f"rl_zoo3.{script}"), script)()


if __name__ == "__main__":
    main()
