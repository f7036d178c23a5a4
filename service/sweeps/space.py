"""The space of a sweep: what it may hold, and the settings that are taken from it."""

import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import ValidationError

from grpo_core.suggestions import suggest
from service.errors import InvalidFieldsError
from service.schemas.fields import name_known_fields
from service.schemas.sweeps import MAX_JOBS, MAX_VALUES, Distribution, SweepRequest
from service.schemas.training import TrainRequest

# Draws until there are as many different settings as are asked for: narrow ranges have few values.
_MAX_DRAWS_PER_TRIAL = 100
Setting = dict[str, Any]

# Why a sweep cannot try several values of a field.
_FIXED = {
    "seed": "list them in the field 'seeds' of the sweep",
    "model_name": "the sweep's models are called after it; send 'name' instead",
    "replace": "a sweep replaces no models",
    "env_name": "rewards of different environments cannot be compared; make a sweep for each",
    "env_kwargs": "rewards of different environments cannot be compared; make a sweep for each",
    "n_eval_episodes": "settings are compared by the same number of episodes; set it in 'base'",
}
# What only some methods take.
_ONLY_FOR = {"n_trials": ("random", "halving"), "reduction_factor": ("halving",), "min_timesteps": ("halving",)}


class Violation(NamedTuple):
    """A fault in one part of a request.

    :param place: The path to it.
    :param error: What pydantic says of it, if pydantic has found it.
    """

    place: tuple[str | int, ...]
    message: str
    error: Mapping[str, Any] = MappingProxyType({"type": "sweep"})


class Space:
    """The values that a sweep's fields may take.

    :param request: The sweep.
    :raises InvalidFieldsError: If a field is unknown or fixed, or a value is one that ``POST /train`` refuses.
    """

    def __init__(self, request: SweepRequest) -> None:
        self._method = request.method
        violations = [*_check_fields(request), *_check_options(request)]
        #: By field: a list of values, or a range.
        self._dimensions: dict[str, list[Any] | Distribution] = {}
        for name, given in request.space.items():
            if not any(violation.place[:2] == ("space", name) for violation in violations):
                self._dimensions[name] = _read_dimension(name, given, violations)
        if not violations:
            violations += self._check_size(request.n_trials)
        if violations:
            raise make_refusal(violations)

    def choose_settings(self, n_trials: int | None, seed: int) -> list[Setting]:
        """Return the settings to try: all combinations, the last field changing first, or as many drawn ones.

        :param n_trials: How many different ones to draw; None takes all.
        :param seed: The same one draws the same settings.
        :raises InvalidFieldsError: If there are too few different ones.
        """
        if n_trials is None:
            lists = [_list_values(dimension) for dimension in self._dimensions.values()]
            return [dict(zip(self._dimensions, values, strict=True)) for values in itertools.product(*lists)]
        rng = random.Random(seed)
        drawn: dict[str, Setting] = {}
        for _ in range(_MAX_DRAWS_PER_TRIAL * n_trials):
            # By name, so that the order in which fields are sent changes nothing.
            setting = {name: _draw(self._dimensions[name], rng) for name in sorted(self._dimensions)}
            drawn.setdefault(json.dumps(setting), {name: setting[name] for name in self._dimensions})
            if len(drawn) == n_trials:
                return list(drawn.values())
        message = f"only {len(drawn)} different settings were drawn of these ranges; send fewer, or wider ranges"
        raise make_refusal([Violation(("n_trials",), message)])

    def _check_size(self, n_trials: int | None) -> list[Violation]:
        n_combinations = math.prod(map(_count_values, self._dimensions.values()))
        if n_trials is None:
            ranges = [name for name, dimension in self._dimensions.items() if math.isinf(_count_values(dimension))]
            if self._method == "random":
                return [Violation(("n_trials",), "method 'random' needs it: how many settings to draw")]
            if ranges and self._method == "grid":
                message = "a grid needs a list of values here; list some, or send method 'random' and n_trials"
                return [Violation(("space", name), message) for name in ranges]
            if ranges:
                return [Violation(("n_trials",), "a range needs it: how many settings to draw")]
            if n_combinations > MAX_JOBS:
                message = (
                    f"these values have {n_combinations:,.0f} combinations, and a sweep may have {MAX_JOBS} jobs; list "
                    "fewer, or send method 'random' and n_trials"
                )
                return [Violation(("space",), message)]
        elif n_trials > n_combinations:
            message = f"{n_trials} is more than the {n_combinations:,.0f} different settings there are; send fewer"
            return [Violation(("n_trials",), message)]
        return []


def make_refusal(violations: Sequence[Violation]) -> InvalidFieldsError:
    """Make the error that names what is wrong with a request, part by part."""
    return InvalidFieldsError([{**error, "loc": place, "msg": text} for place, text, error in violations])


def make_train_request(base: TrainRequest, fields: Mapping[str, Any]) -> TrainRequest:
    """Put values into a request."""
    return TrainRequest.model_validate({**base.model_dump(exclude_unset=True), **fields})


def _check_fields(request: SweepRequest) -> list[Violation]:
    violations = [
        Violation(("base", name), f"not in a sweep: {_FIXED[name]}")
        for name in ("model_name", "replace")
        if name in request.base.model_fields_set and getattr(request.base, name) is not None
    ]
    if request.base.n_eval_episodes == 0:
        message = "a sweep compares evaluations, and 0 makes none; send at least 1"
        violations.append(Violation(("base", "n_eval_episodes"), message))
    if request.seeds is not None and request.base.seed is not None:
        violations.append(Violation(("base", "seed"), "'seeds' of the sweep names the seeds already; leave one out"))
    if request.seeds is not None and len(set(request.seeds)) < len(request.seeds):
        violations.append(Violation(("seeds",), "every seed may be given only once"))
    if not request.space and len(request.seeds or []) <= 1:
        violations.append(
            Violation(("space",), "there is nothing to compare; send fields to vary, or at least two 'seeds'")
        )
    for name in request.space:
        if (obstacle := _find_obstacle(name, request)) is not None:
            violations.append(Violation(("space", name), obstacle))
    return violations


def _find_obstacle(name: str, request: SweepRequest) -> str | None:
    """Return why a sweep cannot vary a field; None if it can."""
    if name not in TrainRequest.model_fields:
        hint = suggest(name, TrainRequest.model_fields, n_most=1, spell=str)
        return f"unknown field; {hint}" if hint else "unknown field of POST /train"
    if name in _FIXED:
        return f"a sweep cannot vary it: {_FIXED[name]}"
    if name == "total_timesteps" and request.method == "halving":
        return "halving itself varies it; set the largest number in 'base'"
    if name in request.base.model_fields_set:
        return "'base' sets it too; leave it out of one of them"
    return None


def _check_options(request: SweepRequest) -> list[Violation]:
    return [
        Violation(
            (name,), f"only for method {' or '.join(map(repr, methods))}, and this is {request.method!r}; leave it out"
        )
        for name, methods in _ONLY_FOR.items()
        if getattr(request, name) is not None and request.method not in methods
    ]


def _read_dimension(name: str, given: Any, violations: list[Violation]) -> list[Any] | Distribution:
    """Read the values of a field; add to the violations what is wrong with them."""
    place = ("space", name)
    if isinstance(given, list):
        return _read_list(name, given, violations)
    if not isinstance(given, dict):
        message = 'send a list of values, or a range such as {"distribution": "uniform", "low": 0, "high": 1}'
        violations.append(Violation(place, message))
        return []
    try:
        dimension = Distribution.model_validate(given)
    except ValidationError as error:
        known = name_known_fields(error, Distribution.model_fields)
        violations += [Violation((*place, *part["loc"]), part["msg"], part) for part in known.errors()]
        return []
    wrong = [Violation((*place, part), text) for part, text in _check_range(dimension)]
    for part, value in [] if wrong else _list_probes(dimension):
        wrong += [
            _add_remedy(dimension, found._replace(place=(*place, *part, *found.place)))
            for found in _check_value(name, value)[1]
        ]
    violations += wrong
    return dimension


def _read_list(name: str, given: list[Any], violations: list[Violation]) -> list[Any]:
    place = ("space", name)
    if not 1 <= len(given) <= MAX_VALUES:
        violations.append(Violation(place, f"a list of 1 to {MAX_VALUES} values, not of {len(given)}"))
        return []
    values, seen = [], set[str]()
    for index, value in enumerate(given):
        read, wrong = _check_value(name, value)
        violations += [part._replace(place=(*place, index, *part.place)) for part in wrong]
        values.append(read)
        # -0.0 and 0.0 are one setting, and JSON writes two.
        if not wrong and (key := json.dumps(read + 0 if isinstance(read, float) else read, sort_keys=True)) in seen:
            violations.append(Violation((*place, index), "this value is in the list already"))
        elif not wrong:
            seen.add(key)
    return values


def _check_value(name: str, value: Any) -> tuple[Any, list[Violation]]:
    """Return a value as ``POST /train`` reads it, and why it refuses it."""
    try:
        request = TrainRequest.model_validate({name: value})
    except ValidationError as error:
        return None, [Violation(part["loc"][1:], part["msg"], part) for part in error.errors()]
    return request.model_dump(mode="json", include={name})[name], []


def _check_range(dimension: Distribution) -> list[tuple[str, str]]:
    if dimension.low >= dimension.high:
        return [("high", f"{dimension.high:g} must be more than low, which is {dimension.low:g}")]
    if dimension.distribution == "loguniform" and dimension.low <= 0:
        return [("low", f"'loguniform' needs a low above 0, not {dimension.low:g}; send a small number, or 'uniform'")]
    if dimension.distribution == "integer":
        return [
            (part, f"{value:g} is no integer; send one, or 'uniform'")
            for part, value in (("low", dimension.low), ("high", dimension.high))
            if not value.is_integer()
        ]
    if dimension.step != 1:
        return [("step", "only 'integer' has a step; leave it out")]
    return []


def _list_probes(dimension: Distribution) -> list[tuple[tuple[str, ...], Any]]:
    """List the ends of a range, and of one of real numbers something between integers."""
    if dimension.distribution == "integer":
        return [(("low",), int(dimension.low)), (("high",), int(dimension.high))]
    between = dimension.low + (dimension.high - dimension.low) / math.e
    return [((), between), (("low",), dimension.low), (("high",), dimension.high)]


def _add_remedy(dimension: Distribution, violation: Violation) -> Violation:
    if dimension.distribution == "integer" or violation.error["type"] not in ("int_type", "int_from_float"):
        return violation
    return Violation(violation.place, "must be a whole number; send distribution 'integer'")


def _count_values(dimension: list[Any] | Distribution) -> float:
    if isinstance(dimension, list):
        return len(dimension)
    if dimension.distribution != "integer":
        return math.inf
    return (int(dimension.high) - int(dimension.low)) // dimension.step + 1


def _list_values(dimension: list[Any] | Distribution) -> Sequence[Any]:
    if isinstance(dimension, list):
        return dimension
    return range(int(dimension.low), int(dimension.high) + 1, dimension.step)


def _draw(dimension: list[Any] | Distribution, rng: random.Random) -> Any:
    if isinstance(dimension, list) or dimension.distribution == "integer":
        return rng.choice(_list_values(dimension))
    if dimension.distribution == "loguniform":
        drawn = math.exp(rng.uniform(math.log(dimension.low), math.log(dimension.high)))
    else:
        drawn = rng.uniform(dimension.low, dimension.high)
    # As many digits as tell four of the range apart, and none that leave the range.
    n_digits = 3 - math.floor(math.log10(min(dimension.high - dimension.low, abs(drawn) or 1.0)))
    return min(dimension.high, max(dimension.low, round(drawn, n_digits)))
