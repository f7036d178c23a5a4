"""Orders to play and film a policy; a ``Play`` is sent to ``service.models.playing.episodes`` in a worker."""

from typing import Any, NamedTuple

import numpy as np

from grpo_core.actor.actor import Actor
from grpo_core.environments.making import EnvSetup
from grpo_core.evaluation import Policy, to_batch
from service.errors import ConflictError
from service.schemas.models import VideoFormat

# The steps of a film at most, where nobody says how many. Chosen: CartPole's longest episode.
FILM_STEPS = 500


class FilmOrder(NamedTuple):
    """An order to film one episode.

    :param seed: Seed of the episode's reset and of sampled actions.
    :param deterministic: Take the most likely actions instead of sampling them.
    :param max_steps: Largest number of steps; a longer episode is cut.
    """

    video_format: VideoFormat
    seed: int
    deterministic: bool
    max_steps: int


class Play(NamedTuple):
    """A policy, and the environment and seed to play it with.

    :param actor: The policy.
    :param setup: A registered environment, as the policy was trained in it.
    :param seed: Seed of the first episode's reset and of sampled actions.
    :param deterministic: Take the most likely actions instead of sampling them.
    """

    actor: Actor
    setup: EnvSetup
    seed: int
    deterministic: bool

    @property
    def env_name(self) -> str:
        """Id of the environment."""
        return self.setup.env_name

    def make_policy(self) -> Policy:
        """Make a policy in which the actor chooses the actions, as ``grpo_core.evaluation.make_policy`` does.

        :raises ConflictError: By the policy, rather than play on with numbers that are not finite: the first action
            would then count as the likeliest.
        """
        actor, rng = self.actor, np.random.default_rng(self.seed)

        def choose(observation: Any, action_masks: Any) -> Any:
            batch = to_batch(actor.observation_space, observation)
            masks = None if action_masks is None else np.asarray(action_masks)[None]
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                decision = actor.act(batch, self.deterministic, rng, masks)
            if not decision.find_finite_choices().all():
                raise ConflictError(
                    "this model cannot be played: its network makes no finite numbers of an observation, since its "
                    "weights are too large or the observation's numbers are; train it again with POST /train."
                )
            return actor.clip_actions(decision.actions)[0]

        return choose
