"""The request to play a policy, sent to ``service.models.episodes`` in a worker."""

from typing import NamedTuple

import numpy as np

from grpo_core.actor.actor import Actor
from grpo_core.environments.making import EnvSetup
from grpo_core.evaluation import Policy, make_policy


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
        """Make a policy in which the actor chooses the actions."""
        return make_policy(self.actor, self.deterministic, np.random.default_rng(self.seed))
