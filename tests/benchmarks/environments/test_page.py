"""The page of tried environments, and what leads to it."""

import json
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import yaml

from benchmarks.environments.__main__ import list_specs
from benchmarks.environments.page import format_page, format_row, list_differences
from benchmarks.environments.sandbox import Package, explain
from benchmarks.environments.trial import Spec, choose_policy, hide_paths, to_json

ROOT = Path(__file__).parents[3]
DONE = {
    **{"construct": "yes", "mode": "branch", "truth": "exact", "train": "yes", "save": "yes", "http": "yes"},
    **{"capture_us": 1234.4, "restore_us": 2.0, "step_us": 9.6, "has_kwargs": False, "has_wrapper": False},
}


def test_row_of_an_environment_that_works() -> None:
    assert format_row("CartPole-v1", DONE) == (
        "| `CartPole-v1` | yes | branch | exact | 1,234 | 2 | 10 | yes | yes | yes |"
    )
    assert list_differences("CartPole-v1", DONE) == []


def test_row_and_differences_of_one_that_does_not() -> None:
    outcome = {"construct": "yes", "truth": "ValueError: no", "http": "unknown", "stopped": 60.0}
    assert format_row("Bird-v0", outcome) == "| `Bird-v0` | yes | - | no | - | - | - | - | - | no |"
    assert list_differences("Bird-v0", outcome) == [
        "- `Bird-v0`, restored: ValueError: no",
        "- `Bird-v0`, HTTP: unknown",
        "- `Bird-v0` was stopped after 60 s",
    ]


def test_what_an_id_alone_cannot_say_is_no_difference() -> None:
    outcome = {**DONE, "http": "not supported", "has_wrapper": True}
    assert format_row("MiniGrid-v0", outcome).endswith("| wrapper |")
    assert list_differences("MiniGrid-v0", outcome) == []


def test_page_names_packages_that_were_not_installed() -> None:
    entries = [
        {"package": "gymnasium", "note": "", "error": "", "labels": ["CartPole-v1"]},
        {"package": "nle", "note": "A game.", "error": "no wheel for this Python", "labels": []},
    ]
    page = format_page(entries, {"CartPole-v1": DONE})
    assert "- `nle`: no wheel for this Python" in page
    assert "- `nle`: A game." in page
    assert "| `CartPole-v1` |" in page


def test_catalogue_is_read_and_labels_are_unique() -> None:
    entries = yaml.safe_load((ROOT / "benchmarks/environments/catalogue.yml").read_text())
    labels = [label for entry in entries for label in list_specs(Package(**entry))]
    assert len(set(labels)) == len(labels)
    assert "Meta-World/MT1 (env_name=reach-v3, seed=0)" in labels


def test_pip_is_explained_in_a_line() -> None:
    assert explain("WARNING: x\nERROR: No matching distribution found for nle\n") == "no wheel for this Python"
    conflict = "ERROR: Cannot install a==1 and a==2 because these package versions have conflicting dependencies.\n"
    assert explain(conflict) == "its requirements contradict the project's versions"


def test_paths_are_hidden() -> None:
    assert hide_paths("no file /a/b/c.xml, 'x/y', <A at 0x7f06>") == "no file c.xml, 'x/y', <A>"


def test_observation_as_json() -> None:
    space = gym.spaces.Dict(a=gym.spaces.Discrete(3), b=gym.spaces.Box(0, 1, (2,)))
    assert json.loads(json.dumps(to_json(space.sample()))).keys() == {"a", "b"}


def test_trial_of_an_environment_that_does_not_exist_ends_at_once() -> None:
    command = [sys.executable, "-m", "benchmarks.environments.trial", json.dumps({"id": "NoSuchThing-v0"})]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["construct"].startswith("NameNotFound")


def test_spec_travels_as_json() -> None:
    assert Spec(**json.loads('{"id": "A-v0", "kwargs": {"n": 1}}')) == Spec("A-v0", kwargs={"n": 1})


def test_policy_of_a_space() -> None:
    spaces = gym.spaces
    assert choose_policy(spaces.Dict(a=spaces.Discrete(2))) == "MultiInputPolicy"
    assert choose_policy(spaces.Box(0, 255, (84, 84, 3), np.uint8)) == "CnnPolicy"
    assert choose_policy(spaces.Box(0, 255, (7, 7, 3), np.uint8)) == "MlpPolicy"
    assert choose_policy(spaces.Discrete(4)) == "MlpPolicy"
