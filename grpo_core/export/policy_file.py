"""The formats of exported policies: what they are called, what they need, and who writes them."""

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, NamedTuple

from grpo_core.actor.actor import Actor
from grpo_core.export.forward import list_inputs, make_masks_input, make_output
from grpo_core.saving.model_file import ModelContent


class MissingPackageError(ImportError):
    """A package that a format needs is not installed."""


class ExportFormat(NamedTuple):
    """A format of exported policies.

    :param suffix: End of its files' names.
    :param package: The package that writes it.
    :param remedy: How to install that.
    :param writer: Module and function that write it, imported only then.
    """

    suffix: str
    package: str
    remedy: str
    writer: tuple[str, str]


EXPORT_FORMATS: Mapping[str, ExportFormat] = MappingProxyType(
    {
        "onnx": ExportFormat(".onnx", "onnx", "pip install onnx", ("onnx_file", "to_onnx")),
        "torchscript": ExportFormat(".pt", "torch", "pip install torch", ("torchscript_file", "to_torchscript")),
    }
)
# Of a model file's metadata; ``spaces`` and ``format`` are only for its readers, ``rng_state`` for its training.
_FACTS = (
    "env_name",
    "env_kwargs",
    "wrappers",
    "reward_function",
    "num_timesteps",
    "n_updates",
    "hyperparameters",
    "network",
    "normalization",
    "lineage",
    "final_evaluation",
    "versions",
)
# A path on the machine that trained the model.
_PRIVATE = "tensorboard_log"


def find_format(path: PurePath) -> str:
    """Return the format of a file by the end of its name.

    :raises ValueError: If the name ends otherwise.
    """
    for name, export_format in EXPORT_FORMATS.items():
        if path.suffix.lower() == export_format.suffix:
            return name
    suffixes = " or ".join(f"{export_format.suffix} ({name})" for name, export_format in EXPORT_FORMATS.items())
    raise ValueError(f"'{path}' does not say which format to export to; end its name in {suffixes}.")


def check_installed(name: str) -> None:
    """Check that a format can be written here.

    :param name: A key of ``EXPORT_FORMATS``.
    :raises MissingPackageError: If its package is missing; the message names the remedy.
    """
    export_format = EXPORT_FORMATS[name]
    if find_spec(export_format.package) is None:
        raise MissingPackageError(
            f"format '{name}' needs the package {export_format.package}, which is not installed: "
            f"{export_format.remedy}."
        )


def export_policy(actor: Actor, facts: Mapping[str, Any], name: str, with_masks: bool = False) -> bytes:
    """Write a policy in another format, with normalisation and the bounds of its actions in it.

    :param actor: The policy; ``forward`` says what the file takes and gives.
    :param facts: JSON-serialisable facts to keep in the file, beside its inputs and outputs.
    :param name: A key of ``EXPORT_FORMATS``.
    :param with_masks: Whether the file takes ``action_masks`` beside every observation.
    :raises MissingPackageError: If the format cannot be written here.
    :raises grpo_core.spaces.UnsupportedSpaceError: If masks are asked for, and the actions cannot be masked.
    """
    masks = make_masks_input(actor) if with_masks else None
    check_installed(name)
    module, function = EXPORT_FORMATS[name].writer
    inputs = [*list_inputs(actor).values(), *([] if masks is None else [masks])]
    ports = {
        "inputs": [port.to_json() for port in inputs],
        "outputs": [make_output(actor).to_json()],
        "observation_space": str(actor.observation_space),
        "action_space": str(actor.action_space),
    }
    writer = getattr(importlib.import_module(f"grpo_core.export.{module}"), function)
    content: bytes = writer(actor, masks, {**facts, **ports})
    return content


def export_model(content: ModelContent, name: str, with_masks: bool = False) -> bytes:
    """Write the policy of a model file in another format; the facts are those of its metadata.

    :param name: A key of ``EXPORT_FORMATS``.
    :param with_masks: As for ``export_policy``, which says what else is raised.
    :raises MissingPackageError: If the format cannot be written here.
    :raises grpo_core.saving.model_file.ModelFileError: If the metadata describes no policy.
    """
    facts = {fact: content.meta[fact] for fact in _FACTS if content.meta.get(fact) is not None}
    if isinstance(facts.get("hyperparameters"), dict):
        facts["hyperparameters"] = {k: v for k, v in facts["hyperparameters"].items() if k != _PRIVATE}
    return export_policy(content.make_actor(), facts, name, with_masks)
