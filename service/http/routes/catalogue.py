"""The environments and reward functions."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from service.http import examples
from service.http.routes.dependencies import CurrentService, errors
from service.schemas.environments import EnvironmentDescription, EnvironmentList, RewardFunctionList
from service.schemas.fields import EnvName

router = APIRouter(tags=["catalogue"])


@router.get("/environments", responses=errors())
def list_environments(
    service: CurrentService,
    search: Annotated[
        str, Query(max_length=128, description="Part of the name, in any case.", examples=["CartPole"])
    ] = "",
) -> EnvironmentList:
    """List the registered environments, latest versions first, without building any."""
    return EnvironmentList(environments=service.catalogue.list_environments(search))


@router.get("/environments/{env_name:path}", responses=errors(404, 413))
def describe_environment(
    service: CurrentService,
    env_name: Annotated[
        EnvName, Path(description="Id of a registered environment.", openapi_examples=examples.ENVIRONMENT)
    ],
) -> EnvironmentDescription:
    """Describe an environment: spaces, whether its state can be restored, preset, reward functions, limits.

    The first request builds it and tries it out for a few steps, as `POST /train` does.
    """
    return service.catalogue.describe_environment(env_name)


@router.get("/reward-functions", responses=errors())
def list_reward_functions(service: CurrentService) -> RewardFunctionList:
    """List the reward functions that a job can name, with their descriptions."""
    return RewardFunctionList(reward_functions=service.catalogue.list_reward_functions())
