"""Damaged and forged model files: the saved policy or a refusal, never another policy, an error or foreign code."""

import zipfile
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from fastapi.testclient import TestClient

from grpo_core.saving import model_file
from tests.fuzz.mutations import craft, mutate
from tests.fuzz.watch import watch
from tests.models import make_model
from tests.suites import SEED, Report, choose

N_MUTATED = choose(4000, 20_000)
N_FORGED = choose(1000, 20_000)
N_CRAFTED = choose(150, 1000)
OBSERVATIONS = np.random.default_rng(0).uniform(-1.0, 1.0, (16, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def content() -> bytes:
    """The file of a small policy, a third of which describes it."""
    return make_model("CartPole-v1", policy_kwargs={"net_arch": [8]}).to_bytes(env_name="CartPole-v1")


def act(content: bytes) -> npt.NDArray[Any]:
    probs = model_file.from_bytes(content).make_actor().action_probs(OBSERVATIONS)
    assert isinstance(probs, np.ndarray)
    return probs


def read_all(files: Iterable[bytes], expected: npt.NDArray[Any], report: Report) -> None:
    """Read files, and count how each turned out."""
    for number, file in enumerate(files):
        report.count("files")
        try:
            with watch() as events:
                answer = act(file)
            report.count("same" if np.array_equal(answer, expected) else "wrong")
        except model_file.ModelFileError:
            report.count("refused")
        except Exception as error:  # what nobody may ever see
            report.count("crashed")
            report.figures.setdefault("crashes", []).append(f"{number}: {type(error).__name__}: {error}"[:200])
        if events:
            report.count("forbidden")
            report.figures.setdefault("events", []).append(f"{number}: {events[0]}"[:200])


def test_a_damaged_file_is_the_same_policy_or_refused(content: bytes) -> None:
    rng, report = np.random.default_rng(SEED), Report("fuzz", "damaged files")
    read_all((mutate(content, rng) for _ in range(N_MUTATED)), act(content), report)
    report.write()
    assert not {"wrong", "crashed", "forbidden"} & report.figures.keys(), report.figures
    assert report.figures["refused"] > N_MUTATED / 2


def test_a_forged_file_is_a_policy_or_refused(content: bytes) -> None:
    rng, report = np.random.default_rng(SEED), Report("fuzz", "forged files")
    read_all((craft(content, rng) for _ in range(N_FORGED)), act(content), report)
    report.write()
    assert not {"crashed", "forbidden"} & report.figures.keys(), report.figures
    assert report.figures["refused"] > N_FORGED / 2


def test_the_check_finds_a_reader_without_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them, damaged weights are another policy, which has to be noticed."""

    def digest(content: bytes) -> Any:
        return SimpleNamespace(hexdigest=lambda: "")

    monkeypatch.setattr(model_file, "hashlib", SimpleNamespace(sha256=digest))
    monkeypatch.setattr(zipfile, "crc32", lambda content, value=0: 0)
    unprotected = make_model("CartPole-v1", policy_kwargs={"net_arch": [8]}).to_bytes(env_name="CartPole-v1")
    rng, report = np.random.default_rng(SEED), Report("fuzz", "negative control")
    read_all((mutate(unprotected, rng) for _ in range(4000)), act(unprotected), report)
    report.write()
    assert report.figures["wrong"] > 0


def test_the_check_finds_a_reader_that_crashes(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse_as_numpy_does(*_: Any) -> None:
        compile("if 1:\n    x\n  y\n", "head", "eval")

    monkeypatch.setattr(model_file, "_check_directory", parse_as_numpy_does)
    report = Report("fuzz", "negative control of crashes")
    read_all([content], np.zeros((16, 2)), report)
    assert report.figures["crashed"] == 1
    assert report.figures["forbidden"] == 1


def test_whatever_is_uploaded_the_server_answers_for_it(client: TestClient, content: bytes) -> None:
    rng, report = np.random.default_rng(SEED), Report("fuzz", "uploads")
    headers = {"content-type": "application/zip"}
    make: Callable[..., bytes]
    for number in range(N_CRAFTED):
        make = craft if number % 4 else mutate
        uploaded = client.put("/models/m/file?overwrite=true", content=make(content, rng), headers=headers)
        answers = [uploaded, client.get("/models"), client.get("/models/m"), client.get("/models/m/file")]
        answers.append(client.post("/inference", json={"model_name": "m", "observation": [0.1, 0.0, 0.05, 0.0]}))
        for answer in answers:
            report.count(str(answer.status_code))
        assert uploaded.status_code in (200, 400), uploaded.text
        assert answers[1].status_code == 200
        assert all(answer.status_code < 500 for answer in answers), [answer.text for answer in answers]
    report.write()
    assert report.figures["400"] > 0
