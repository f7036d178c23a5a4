"""Begin a training from a model that was trained before."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from stable_baselines3.common.vec_env import unwrap_vec_normalize

from grpo import GRPO
from grpo_core.saving import model_file
from grpo_core.saving.model_file import ModelFileError, read_count
from grpo_core.saving.model_state import restore_normalization
from grpo_core.saving.moments import read_parameter_names
from grpo_core.saving.space_json import space_from_json, space_to_json
from service.errors import InvalidRequestError, printable
from service.schemas.training import Normalization, TrainConfig

# Of what a file says about the moments it lacks.
_MAX_REASON_CHARS = 300


class Lineage(NamedTuple):
    """The model that a training began from.

    :param model_name: Name of the model at that time.
    :param sha256: SHA-256 of its file.
    :param num_timesteps: Simulator steps that it had been trained for.
    """

    model_name: str
    sha256: str
    num_timesteps: int


def read_init_settings(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a model dictates: those of its network and of its normalisation.

    :param meta: The metadata of its file.
    :raises InvalidRequestError: If no request can ask for such a network.
    """
    network = meta["network"]
    hidden = network["net_arch"]
    if network.get("own_parts") or hidden["pi"] != hidden["vf"]:
        raise InvalidRequestError(
            "init_model has a network that no job can have: layers of its author's own, or other ones for its values "
            "than for its policy. Train it on in Python, with GRPO.load(path, env=env)."
        )
    settings = meta.get("normalization")
    normalize: bool | Normalization = False
    if settings is not None:
        normalize = Normalization(norm_obs=settings["norm_obs"], norm_reward=settings["norm_reward"])
    return {"net_arch": hidden["pi"], "activation": network["activation"].lower(), "normalize": normalize}


def check_init(model: GRPO, config: TrainConfig, meta: Mapping[str, Any]) -> None:
    """Check that a model fits what is to be trained.

    :param model: As the configuration builds it.
    :param meta: The metadata of the model that training begins from.
    :raises InvalidRequestError: If it does not fit; the message says what to change.
    """
    for role, space in (("observation", model.observation_space), ("action", model.action_space)):
        if space_to_json(space) != meta["spaces"][role]:
            theirs = space_from_json(meta["spaces"][role])
            raise InvalidRequestError(
                f"init_model '{config.init_model}' was trained on other {role}s, {theirs}, than env_name "
                f"'{config.env_name}' has, {space}; choose a model of this environment, with the same env_kwargs and "
                "wrappers."
            )
    for name, theirs in read_init_settings(meta).items():
        ours = getattr(config, name)
        if ours != theirs:
            shown = theirs.model_dump() if isinstance(theirs, Normalization) else theirs
            raise InvalidRequestError(
                f"{name} is not that of init_model '{config.init_model}', {shown}; leave {name} out to train it on."
            )


def begin_from(model: GRPO, config: TrainConfig, content: bytes, warn: Callable[[str], None]) -> Lineage:
    """Give a new model the weights, the optimizer's moments and the statistics of another one.

    :param content: The other model's file.
    :param warn: Takes a sentence about what of it is lost.
    :raises InvalidRequestError: If it does not fit, or cannot be read.
    """
    assert config.init_model is not None, "there is a file of it"
    try:
        loaded = model_file.from_bytes(content, with_optimizer=True)
    except ModelFileError as error:
        raise InvalidRequestError(f"init_model '{config.init_model}' cannot be used: {error}") from error
    check_init(model, config, loaded.meta)
    if "optimizer" in loaded.meta:  # the job's own configuration says how it trains, not what the file's author set
        optimizer: dict[str, Any] = {"parameters": read_parameter_names(loaded.meta)}
        if "lost" in loaded.meta["optimizer"]:
            optimizer["lost"] = printable(str(loaded.meta["optimizer"]["lost"]), _MAX_REASON_CHARS)
        loaded = replace(loaded, meta={**loaded.meta, "optimizer": optimizer})
    lost = model._load_arrays(loaded)
    if lost is not None:
        warn(f"not all of init_model '{config.init_model}' could be used: {lost}; what is missing begins anew.")
    env = model.get_env()
    assert env is not None, "it was built with one"
    if (vec_normalize := unwrap_vec_normalize(env)) is not None:
        restore_normalization(vec_normalize, loaded)
        vec_normalize.training = True  # even if the other one was saved with frozen statistics
    sha256 = hashlib.sha256(content).hexdigest()
    return Lineage(config.init_model, sha256, read_count(loaded.meta.get("num_timesteps")) or 0)
