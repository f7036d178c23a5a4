"""The commands that list environments and reward functions."""

import argparse
from typing import Any

from grpo_client.answers.text import describe_facts
from grpo_client.client import Client
from grpo_client.terminal import reports
from grpo_client.terminal.command import Reply, add_command


def add_catalogue_commands(commands: Any) -> None:
    """Add the commands of what a job can be made of."""
    search = add_command(commands, "environments", _list_environments, "list the environments")
    search.add_argument("search", nargs="?", help="part of the names")
    environment = add_command(commands, "environment", _show_environment, "describe an environment")
    environment.add_argument("env", help="its id")
    add_command(commands, "rewards", _list_rewards, "list the reward functions")


def _list_environments(client: Client, options: argparse.Namespace) -> Reply:
    environments = client.environments(options.search)
    return Reply([one.to_json() for one in environments], reports.list_environments(environments))


def _show_environment(client: Client, options: argparse.Namespace) -> Reply:
    environment = client.environment(options.env).to_json()
    return Reply(environment, describe_facts(environment))


def _list_rewards(client: Client, options: argparse.Namespace) -> Reply:
    rewards = client.reward_functions()
    return Reply([reward.to_json() for reward in rewards], reports.list_rewards(rewards))
