"""Every method of both clients, against a real server."""

import hashlib
import math
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi import FastAPI

from grpo_client import (
    ApiError,
    AsyncClient,
    Client,
    Conflict,
    Evaluation,
    FileProblem,
    GRPOError,
    InvalidArgument,
    InvalidRequest,
    ItemError,
    JobEvent,
    JobFailed,
    JobTimeout,
    MissingPackage,
    NotFound,
    Prediction,
    ServerUnreachable,
)
from tests.conftest import RegisterEnv
from tests.environments import Gate, LineEnv
from tests.grpo_client.blocking import open_client
from tests.grpo_client.generate import TARGET, generate_client
from tests.grpo_client.scripted_server import Answer, serve_script
from tests.models import make_model
from tests.support import PATIENCE_SECONDS, serve, wait_until

SHORT = {"env_name": "CartPole-v1", "total_timesteps": 64, "seed": 0}
HOLDS_ITSELF: list[Any] = []
HOLDS_ITSELF.append(HOLDS_ITSELF)
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def open_gate(server_url: str) -> Any:
    """A gate that opens for good before the server shuts down."""
    gate = Gate()
    yield gate
    gate.admit()


def save_model(app: FastAPI, name: str = "m") -> bytes:
    """Save an untrained model in the server's folder."""
    content = make_model("CartPole-v1").to_bytes(env_name="CartPole-v1")
    (app.state.service.settings.models_dir / f"{name}.zip").write_bytes(content)
    return content


def test_the_client_that_blocks_is_generated() -> None:
    assert TARGET.read_text() == generate_client(), "run: make format"


def test_the_package_imports_neither_the_library_nor_the_server() -> None:
    unwanted = ["grpo", "grpo_core", "service", "torch", "numpy", "rich"]
    code = f"import sys, grpo_client; print([name for name in {unwanted} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert printed.stdout == "[]\n", printed.stderr


def test_the_server_describes_itself(grpo: Any) -> None:
    assert grpo.server_info().message == "GRPO API Server"
    health = grpo.health()
    assert (health.status, health.active_jobs, health.loaded_models) == ("healthy", 0, 0)
    assert health.timestamp.utcoffset().total_seconds() == 0


def test_a_job_is_trained_waited_for_and_asked(grpo: Any) -> None:
    heard: list[JobEvent] = []
    job = grpo.train(**SHORT, model_name="m")
    assert job.config["model_name"] == "m"
    status = job.wait(timeout_seconds=PATIENCE_SECONDS, on_event=heard.append)
    assert (status.status, status.model_name, status.is_final) == ("completed", "m", True)
    assert status.end_time > status.start_time
    assert heard[-1].name == "job.completed"
    assert heard[-1].final_status == status
    assert {"job.status", "job.metrics"} <= {event.name for event in heard}
    assert [event.event_id for event in heard] == sorted({event.event_id for event in heard})
    assert grpo.status(job.job_id) == grpo.status("latest") == job.status() == status
    assert grpo.job().job_id == job.job_id


def test_a_job_that_is_over_is_waited_for_without_time(grpo: Any) -> None:
    job, heard = grpo.train(**SHORT), list[JobEvent]()
    status = job.wait()
    assert job.wait(timeout_seconds=0, on_event=heard.append, progress=True) == status
    assert heard[-1].final_status == status
    assert list(job.events(timeout_seconds=-1))[-1].name == "job.completed"


def test_events_after_an_id_are_sent_again(grpo: Any) -> None:
    job = grpo.train(**SHORT)
    events = list(job.events())
    assert [event.event_id for event in grpo.events(job.job_id, after=events[-3].event_id)] == [
        event.event_id for event in events[-2:]
    ]
    assert [event.name for event in grpo.events("latest")][-1] == "job.completed"


def test_all_events_come_after_an_id_that_no_event_has_yet(grpo: Any) -> None:
    """A client that kept another job's id must not wait for events that never come."""
    job = grpo.train(**SHORT)
    job.wait()
    kept, sent = ([event.event_id for event in job.events(after=after)] for after in (0, 10**9))
    assert sent == kept


def test_metrics_of_a_job_are_returned(grpo: Any, tmp_path: Path) -> None:
    job = grpo.train(**SHORT)
    job.wait()
    history = job.metrics()
    assert history.job_id == job.job_id
    assert "train/loss" in history.keys
    assert [row.timesteps for row in history.rows] == sorted(row.timesteps for row in history.rows)
    assert history.rows[-1].metrics["train/loss"] == job.status().metrics["train/loss"]
    header, *rows = grpo.metrics_csv(job.job_id).splitlines()
    assert header.startswith("timesteps,elapsed_seconds,")
    assert len(rows) == len(history.rows)


def test_evaluations_of_a_job_are_reported(grpo: Any) -> None:
    heard: list[JobEvent] = []
    job = grpo.train(**{**SHORT, "total_timesteps": 256}, eval_freq=64, n_eval_episodes=2)
    status = job.wait(on_event=heard.append)
    told = [Evaluation.parse(event.payload) for event in heard if event.name == "job.evaluation"]
    assert len(told) >= 2
    assert told == list(job.metrics().evaluations)
    assert told[-1] == status.evaluation
    assert status.best_evaluation.mean_reward == max(evaluation.mean_reward for evaluation in told)
    assert {evaluation.n_episodes for evaluation in told} == {2}


def test_jobs_are_listed_in_pages(grpo: Any) -> None:
    ids = []
    for _ in range(3):
        job = grpo.train(**SHORT)
        job.wait()
        ids.append(job.job_id)
    assert [job.job_id for job in grpo.jobs()] == ids
    assert [job.job_id for job in grpo.jobs(limit=1, after=ids[0])] == ids[1:2]
    assert grpo.jobs(status="running") == []
    assert grpo.jobs()[0].env_name == "CartPole-v1"


def test_a_job_that_goes_on_is_stopped(grpo: Any, register_env: RegisterEnv, open_gate: Gate) -> None:
    env_name = register_env(lambda: LineEnv(on_step=open_gate.pass_through), max_episode_steps=5)
    open_gate.admit(100)
    job = grpo.train(env_name=env_name, total_timesteps=10_000, group_mode="episode", n_steps=64, n_eval_episodes=0)
    with pytest.raises(JobTimeout, match=r"is not over after 0\.2 s; it goes on") as raised:
        job.wait(timeout_seconds=0.2)
    assert raised.value.job_id == job.job_id
    wait_until(lambda: bool(job.status().status == "running"))
    open_gate.admit(200)
    assert job.stop().message.startswith("Training job stop")
    open_gate.admit()
    assert job.wait(timeout_seconds=PATIENCE_SECONDS).status == "stopped"


def test_a_job_that_fails_raises_its_error(grpo: Any, register_env: RegisterEnv) -> None:
    n_steps = iter(range(10**9))

    def fail() -> None:
        if next(n_steps) > 300:
            raise RuntimeError("the motor broke")

    env_name = register_env(lambda: LineEnv(on_step=fail), max_episode_steps=5)
    job = grpo.train(env_name=env_name, total_timesteps=10_000, group_mode="episode", n_steps=64, n_eval_episodes=0)
    with pytest.raises(JobFailed, match="the motor broke") as raised:
        job.wait()
    assert raised.value.status.status == "failed"


def test_a_bar_shows_how_a_job_ended(grpo: Any, capsys: pytest.CaptureFixture[str]) -> None:
    grpo.train(**SHORT).wait(progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "completed" in captured.err
    assert "100% reward" in captured.err
    assert "entropy 0." in captured.err


@pytest.mark.parametrize("observation", [[0.1, 0.0, 0.05, 0.0], np.array([0.1, 0.0, 0.05, 0.0])])
def test_a_policy_is_asked_for_an_action(grpo: Any, app: FastAPI, observation: Any) -> None:
    save_model(app)
    prediction = grpo.predict("m", observation)
    assert prediction.action == int(np.argmax(prediction.action_probs))
    masked = grpo.predict("m", observation, deterministic=False, action_masks=np.array([False, True]))
    assert (masked.action, masked.action_probs) == (1, [0.0, 1.0])


def test_a_batch_has_an_error_where_an_observation_does_not_fit(grpo: Any, app: FastAPI) -> None:
    save_model(app)
    answered, refused = grpo.predict_batch("m", [[0.1, 0.0, 0.05, 0.0], [0.1]], action_masks=[None, None])
    assert isinstance(answered, Prediction)
    alone = grpo.predict("m", [0.1, 0.0, 0.05, 0.0])
    assert answered.action == alone.action
    assert answered.action_probs == pytest.approx(alone.action_probs, abs=1e-6)
    assert isinstance(refused, ItemError)
    assert "shape [4]" in refused.error


def test_an_array_is_answered_with_an_array(grpo: Any, app: FastAPI) -> None:
    save_model(app)
    observations = np.random.default_rng(0).uniform(-1, 1, (50, 4)).astype(np.float32)
    actions = grpo.predict_array("m", observations)
    assert actions.shape == (50,)
    assert actions.tolist() == [answer.action for answer in grpo.predict_batch("m", observations)]


def test_models_are_listed_described_and_deleted(grpo: Any, app: FastAPI) -> None:
    content = save_model(app)
    assert [model.name for model in grpo.models()] == ["m"]
    card = grpo.model("m")
    assert (card.env_name, card.n_bytes, card.hyperparameters["group_size"]) == ("CartPole-v1", len(content), 2)
    assert grpo.delete("m").model_name == "m"
    assert grpo.models() == []


def test_a_policy_is_compared_with_random_actions(grpo: Any, app: FastAPI) -> None:
    save_model(app)
    comparison = grpo.evaluate("m", n_episodes=5, seed=3)
    assert (comparison.env_name, comparison.seed, comparison.deterministic) == ("CartPole-v1", 3, True)
    assert (comparison.evaluation.n_episodes, comparison.random.n_episodes) == (5, 5)
    low, high = comparison.evaluation.mean_reward_ci95
    assert low <= comparison.evaluation.mean_reward <= high
    assert comparison.better_than_random == (low > comparison.random.mean_reward_ci95[1])
    assert grpo.model("m").evaluation == comparison.evaluation


def test_numbers_of_numpy_are_sent_like_any_other(grpo: Any, app: FastAPI) -> None:
    for seed in range(2):
        app.state.service.store.publish("m", make_model("CartPole-v1", seed).to_bytes(env_name="CartPole-v1"))
    played = grpo.evaluate("m", n_episodes=np.int64(2), seed=np.uint8(3), deterministic=np.bool_(True))
    assert played.evaluation == grpo.evaluate("m", n_episodes=2, seed=3).evaluation
    assert grpo.set_alias("m", "prod", np.int64(1)).version == 1
    assert grpo.rollback("m", np.int64(1)).restored_version == 1


def test_an_episode_is_filmed(grpo: Any, app: FastAPI, tmp_path: Path) -> None:
    save_model(app)
    video = grpo.video("m", tmp_path / "new" / "film.gif", seed=1, max_steps=5)
    assert (video.n_steps, video.reward) == (5, 5.0)
    assert video.path == tmp_path / "new" / "film.gif"
    assert video.path.read_bytes().startswith(b"GIF89a")
    assert video.n_bytes == video.path.stat().st_size
    with pytest.raises(ValueError, match=r"end its name in \.gif or \.mp4"):
        grpo.video("m", tmp_path / "film.avi")


def test_a_job_is_filmed(grpo: Any, tmp_path: Path) -> None:
    job = grpo.train(**SHORT)
    job.wait()
    video = job.video(tmp_path / "film.gif", seed=1, max_steps=5)
    assert (video.n_steps, video.reward, video.checkpoint_timesteps) == (5, 5.0, None)
    assert video == grpo.job_video(job.job_id, tmp_path / "film.gif", seed=1, max_steps=5)
    assert video.path.read_bytes().startswith(b"GIF89a")


def test_a_model_file_is_downloaded_and_uploaded(grpo: Any, app: FastAPI, tmp_path: Path) -> None:
    content = save_model(app)
    path = grpo.download("m", tmp_path / "new" / "mine.zip")
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]
    card = grpo.upload("again", path)
    assert (card.name, card.n_bytes, card.env_name) == ("again", len(content), "CartPole-v1")
    assert card.sha256 == grpo.model("m").sha256
    with pytest.raises(Conflict):
        grpo.upload("again", path)
    assert grpo.upload("again", path, overwrite=True).name == "again"
    (tmp_path / "bad.zip").write_bytes(b"no model")
    with pytest.raises(InvalidRequest):
        grpo.upload("bad", tmp_path / "bad.zip")


def test_a_model_file_is_saved_under_its_name_by_default(
    grpo: Any, app: FastAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = save_model(app)
    monkeypatch.chdir(tmp_path)
    assert grpo.download("m") == Path("m.zip")
    assert (tmp_path / "m.zip").read_bytes() == content


def test_a_model_file_is_saved_under_its_name_in_a_folder(grpo: Any, app: FastAPI, tmp_path: Path) -> None:
    content = save_model(app)
    for folder in (tmp_path, f"{tmp_path}/new/"):
        assert grpo.download("m", folder) == Path(folder) / "m.zip"
        assert Path(folder, "m.zip").read_bytes() == content


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    ("path", "said"),
    [
        (b"m.zip", "is of type bytes; give a text or a pathlib.Path"),
        (5, "path=5 is of type int; give a text"),
        ("", "path='' is empty; name a file"),
        (None, "path=None is of type NoneType"),
        ("new/", "path='new/' is a folder; name a file in it"),
    ],
)
def test_nothing_is_asked_where_a_path_is_none(kind: str, path: Any, said: str) -> None:
    methods = ["curve", "job_video", "video", "export", "download", "upload"]
    if path in (None, "new/"):  # a download takes these
        methods = methods[:4]
    with serve_script(Answer(200, "{}")) as server, open_client(kind, server.url) as client:
        for method in methods:
            with pytest.raises(InvalidArgument, match=said):
                getattr(client, method)("m", path)
        with pytest.raises(InvalidArgument, match="of type NoneType"):
            client.upload("m", None)
    assert server.received == []


def test_versions_are_listed_promoted_and_rolled_back(grpo: Any, app: FastAPI) -> None:
    for seed in range(3):
        app.state.service.store.publish("m", make_model("CartPole-v1", seed).to_bytes(env_name="CartPole-v1"))
    assert grpo.set_alias("m", "prod", 1).previous_version is None
    alias = grpo.set_alias("m", "prod")
    assert (alias.version, alias.previous_version) == (3, 1)
    listed = grpo.versions("m")
    assert [(one.version, one.is_newest, one.aliases) for one in listed.versions] == [
        (3, True, ("prod",)),
        (2, False, ()),
        (1, False, ()),
    ]
    assert (listed.aliases, listed.versions[0].env_name) == ({"prod": 3}, "CartPole-v1")
    assert grpo.predict("m@prod", [0.0] * 4) == grpo.predict("m", [0.0] * 4)
    done = grpo.rollback("m")
    assert (done.version, done.restored_version) == (4, 2)
    assert grpo.model("m").sha256 == listed.versions[1].sha256
    assert grpo.rollback("m", 1).version == 5
    assert grpo.delete_alias("m", "prod").previous_version == 3
    with pytest.raises(NotFound):
        grpo.predict("m@prod", [0.0] * 4)


def test_a_policy_is_exported(grpo: Any, app: FastAPI, tmp_path: Path) -> None:
    save_model(app)
    path = grpo.export("m", tmp_path / "new" / "m.pt", action_masks=True)
    assert path == tmp_path / "new" / "m.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        policy = torch.jit.load(path)  # type: ignore[no-untyped-call]
    observation, masks = torch.zeros(1, 4), torch.tensor([[False, True]])
    assert policy(observation, masks).tolist() == [1]
    with pytest.raises(ValueError, match=r"end its name in \.onnx \(onnx\) or \.pt \(torchscript\)"):
        grpo.export("m", tmp_path / "m.zip")


ZIP_TYPE = ("Content-Type", "application/zip")
WHOLE = "PK\x03\x04 whole"
WHOLE_SHA256 = hashlib.sha256(WHOLE.encode()).hexdigest()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_damaged_download_is_not_saved(kind: str, tmp_path: Path) -> None:
    headers = (ZIP_TYPE, ("ETag", f'"{WHOLE_SHA256}"'))
    with serve_script(Answer(200, WHOLE, headers), Answer(200, "PK\x03\x04 whol3", headers)) as server:
        with open_client(kind, server.url) as client:
            assert client.download("m", tmp_path / "m.zip").read_bytes() == WHOLE.encode()
            with pytest.raises(GRPOError, match="came damaged"):
                client.download("m", tmp_path / "m.zip")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [WHOLE.encode()]


@pytest.mark.parametrize("tag", ['W/"{}"', '"{}-gzip"', '"{}--gzip"', '"other"', ""])
def test_a_tag_that_a_proxy_has_changed_is_not_compared(tag: str, tmp_path: Path) -> None:
    etag = ("ETag", tag.format(hashlib.sha256(b"other").hexdigest()))
    with serve_script(Answer(200, WHOLE, (ZIP_TYPE, etag))) as server, Client(server.url) as client:
        assert client.download("m", tmp_path / "m.zip").read_bytes() == WHOLE.encode()


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    "page",
    [Answer(200, "<html>log in</html>", (("Content-Type", "text/html; charset=utf-8"),)), Answer(204)],
    ids=["a page", "nothing"],
)
def test_what_is_no_file_of_a_server_is_not_saved(kind: str, page: Answer, tmp_path: Path) -> None:
    methods = {"download": "m.zip", "export": "m.onnx", "curve": "m.png", "video": "m.gif", "job_video": "n.gif"}
    for name in methods.values():
        (tmp_path / name).write_bytes(b"before")
    with serve_script(page) as server, open_client(kind, server.url) as client:
        for method, name in methods.items():
            with pytest.raises(ServerUnreachable):
                getattr(client, method)("m", tmp_path / name)
        with pytest.raises(ServerUnreachable, match=r"is of type .* and not text/csv, so this is not a GRPO server"):
            client.metrics_csv("m")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"] * len(methods)


@pytest.mark.parametrize("body", ["", "<html>", "PK\x05\x06"])
def test_what_only_calls_itself_a_model_file_is_not_saved(body: str, tmp_path: Path) -> None:
    with serve_script(Answer(200, body, (ZIP_TYPE,))) as server, Client(server.url) as client:
        with pytest.raises(ServerUnreachable, match="is no model file, so this is not a GRPO server; check the URL"):
            client.download("m", tmp_path / "m.zip")
    assert not list(tmp_path.iterdir())


def test_environments_and_rewards_are_listed(grpo: Any) -> None:
    assert "CartPole-v1" in {environment.env_name for environment in grpo.environments("cartpole")}
    assert "Acrobot-v1" not in {environment.env_name for environment in grpo.environments("cartpole")}
    environment = grpo.environment("CartPole-v1")
    assert (environment.restorable, environment.max_episode_steps) == (True, 500)
    assert environment.action_space["n"] == 2
    assert "optimized_cartpole" in environment.reward_functions
    rewards = {reward.name: reward for reward in grpo.reward_functions()}
    assert "upright" in rewards["optimized_cartpole"].description


@pytest.mark.parametrize(
    ("method", "arguments", "kind", "status"),
    [
        ("status", ("x",), NotFound, 404),
        ("stop", ("x",), NotFound, 404),
        ("wait", ("x",), NotFound, 404),
        ("model", ("x",), NotFound, 404),
        ("environment", ("Nowhere-v0",), NotFound, 404),
        ("predict", ("m", [1.0]), InvalidRequest, 400),
    ],
)
def test_a_refusal_raises_all_that_the_server_says(
    grpo: Any, app: FastAPI, method: str, arguments: tuple[Any, ...], kind: type[ApiError], status: int
) -> None:
    save_model(app)
    with pytest.raises(kind) as raised:
        getattr(grpo, method)(*arguments)
    assert raised.value.status == status
    assert str(raised.value.problem_type).startswith("urn:grpo:problem:")
    assert len(str(raised.value.request_id)) == 36
    assert raised.value.detail in str(raised.value)


def test_unknown_fields_and_taken_names_are_refused(grpo: Any, register_env: RegisterEnv, open_gate: Gate) -> None:
    with pytest.raises(InvalidRequest, match=r"did you mean n_steps\?"):
        grpo.train(n_step=64)
    for ask in (grpo.train, grpo.start_sweep, partial(grpo.label, "latest")):
        with pytest.raises(ApiError):  # a name like any other
            ask(**{"self": 1})
    env_name = register_env(lambda: LineEnv(on_step=open_gate.pass_through), max_episode_steps=5)
    open_gate.admit(100)
    request = {"env_name": env_name, "group_mode": "episode", "n_steps": 64, "n_eval_episodes": 0}
    job = grpo.train(**request, total_timesteps=256, model_name="taken")
    with pytest.raises(Conflict):
        grpo.train(**SHORT, model_name="taken")
    open_gate.admit()
    job.wait()


@pytest.mark.parametrize("overrides", [{"api_key": "0123456789abcdef"}], ids=["with a key"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_key_opens_the_server(kind: str, app: FastAPI) -> None:
    with serve(app) as port:
        url = f"http://127.0.0.1:{port}"
        with open_client(kind, url) as client, pytest.raises(ApiError, match="needs an API key") as raised:
            client.models()
        assert raised.value.status == 401
        with open_client(kind, url, api_key="0123456789abcdef") as client:
            assert client.models() == []


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_name_stays_one_part_of_the_path(kind: str, server_url: str) -> None:
    with open_client(kind, server_url) as client:
        for name in ("a?b=c", "a#b", "%2e%2e", "a%2fb"):
            with pytest.raises((NotFound, InvalidRequest)):
                client.model(name)


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("name", ["m/aliases/prod", "../health", "/m", "m/"])
def test_a_name_with_a_slash_is_not_sent(kind: str, name: str) -> None:
    with serve_script(Answer(200, "{}")) as server, open_client(kind, server.url) as client:
        for method in (client.delete, client.model, client.forget, client.delete_sweep):
            with pytest.raises(InvalidArgument, match="as no name or id does"):
                method(name)
        with pytest.raises(InvalidArgument, match="as no name or id does"):
            client.delete_alias("m", name)
        assert server.received == []
        with suppress(ServerUnreachable):  # the script's answer is no environment
            client.environment("ALE/Pong-v5")
    assert [request.path for request in server.received] == ["/environments/ALE/Pong-v5"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"base_url": "localhost:8000"}, "write it as http://HOST:PORT"),
        ({"base_url": "http://"}, "names no host"),
        ({"base_url": "http://[::1"}, "is not allowed"),
        ({"base_url": "http://localhost:99999"}, "has port 99999; ports are from 1 to 65535"),
        ({"base_url": "http://localhost:0"}, "has port 0; ports are from 1"),
        ({"base_url": "http://localhost:-1"}, "has port -1; ports are from 1"),
        ({"base_url": "http://localhost?a=b"}, "has a query or a fragment; write it as http://HOST:PORT"),
        ({"base_url": "http://localhost/#a"}, "has a query or a fragment"),
        ({"api_key": "two\nlines"}, "api_key has characters"),
        ({"base_url": b"http://localhost"}, "write it as http://HOST:PORT"),
        ({"api_key": b"key"}, "api_key is of type bytes"),
        ({"api_key": 12}, "api_key is of type int"),
        ({"timeout_seconds": 0}, "timeout_seconds=0 is not allowed"),
        ({"timeout_seconds": "5"}, "timeout_seconds='5' is not allowed"),
        ({"timeout_seconds": math.inf}, "timeout_seconds=inf is not allowed.*at most 1000000"),
        ({"timeout_seconds": math.nan}, "timeout_seconds=nan is not allowed"),
        ({"max_retries": -1}, "max_retries=-1 is not allowed"),
        ({"max_retries": "3"}, "max_retries='3' is not allowed: it must be a whole number"),
        ({"max_retries": 1.5}, "max_retries=1.5 is not allowed"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any], said: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match=said):
            kind(**arguments)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_scheme_in_capitals_is_one(kind: str, server_url: str) -> None:
    with open_client(kind, server_url.replace("http", "HTTP")) as client:
        assert client.health().status == "healthy"


def test_an_address_keeps_its_brackets_in_messages() -> None:
    with Client("http://[::1]:1", max_retries=0) as client:
        with pytest.raises(ServerUnreachable, match=r"no answer from http://\[::1\]:1 "):
            client.health()


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "none"])
def test_a_server_on_this_machine_is_not_asked_through_a_proxy(
    grpo: Any, server_url: str, monkeypatch: pytest.MonkeyPatch, variable: str, proxy: str
) -> None:
    monkeypatch.setenv(variable, proxy)
    for host in ("127.0.0.1", "localhost"):
        with Client(server_url.replace("127.0.0.1", host)) as client:
            assert client.health().status == "healthy"


@pytest.mark.parametrize(
    ("proxy", "kind", "said"),
    [
        ("socks5://127.0.0.1:9", MissingPackage, r"HTTP_PROXY .* pip install httpx2\[socks\]"),
        ("foo://127.0.0.1:9", GRPOError, "HTTP_PROXY holds no proxy that can be used"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, proxy: str, kind: type[GRPOError], said: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.setitem(sys.modules, "socksio", None)
    for client in (Client, AsyncClient):
        with pytest.raises(kind, match=said):
            client("http://grpo.example")


def test_a_proxy_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with Client("http://grpo.example", max_retries=0) as client:
        with pytest.raises(ServerUnreachable, match="through the proxy of HTTP_PROXY"):
            client.health()


@pytest.mark.parametrize(
    ("ask", "kind", "said"),
    [
        (lambda client: client.upload("m", "/no/such/file"), FileProblem, "cannot be read"),
        (lambda client: client.upload("m", "/"), FileProblem, "Is a directory"),
        (lambda client: client.train(env_name=object()), InvalidArgument, "not JSON serializable"),
        (lambda client: client.predict("m", [math.nan]), InvalidArgument, "not JSON compliant"),
        (lambda client: client.predict_array("m", np.array([object()])), InvalidArgument, "[Oo]bject arrays"),
        (lambda client: client.status("\ud800"), NotFound, "no training job"),
        (lambda client: client.model(None), InvalidArgument, "None is neither a name nor an id"),
        (lambda client: client.status(5), InvalidArgument, "5 is neither a name nor an id"),
        (lambda client: client.model(""), InvalidArgument, "'' is neither"),
        (lambda client: client.model("."), InvalidArgument, r"'\.' is neither"),
        (lambda client: client.delete(".."), InvalidArgument, r"'\.\.' is neither"),
        (lambda client: client.environment("a/../b"), InvalidArgument, r"'\.\.' is neither"),
        (lambda client: client.environment(None), InvalidArgument, "None is neither"),
        (lambda client: client.wait("x", timeout_seconds="5"), InvalidArgument, "timeout_seconds='5' is not allowed"),
        (lambda client: client.wait("x", timeout_seconds=math.nan), InvalidArgument, "timeout_seconds=nan"),
        (lambda client: client.predict("m", HOLDS_ITSELF), InvalidArgument, "nested too deeply"),
        (lambda client: client.video("m", "m.png"), InvalidArgument, "not a film"),
        (lambda client: client.export("m", "m.png"), InvalidArgument, "which format to export to"),
    ],
)
def test_every_error_is_one_of_this_package(grpo: Any, ask: Any, kind: type[GRPOError], said: str) -> None:
    with pytest.raises(kind, match=said) as caught:
        ask(grpo)
    assert isinstance(caught.value, GRPOError)


@pytest.mark.parametrize("status", [200, 404])
def test_an_answer_that_is_nested_too_deeply_is_none_of_a_server(status: int) -> None:
    with serve_script(Answer(status, "[" * 20_000)) as script, Client(script.url) as client:
        with pytest.raises(ServerUnreachable if status == 200 else NotFound):
            client.health()


def test_a_closed_client_says_so(server_url: str) -> None:
    with Client(server_url) as client:
        client.health()
    with pytest.raises(GRPOError, match="is closed"):
        client.health()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_closed_client_says_so_of_a_job_too(kind: str) -> None:
    with serve_script(Answer(200, "{}")) as server, open_client(kind, server.url) as client:
        client.close()
        for ask in (client.wait, lambda job_id: list(client.events(job_id))):
            with pytest.raises(GRPOError, match="the client is closed; make a new one"):
                ask("j")
    assert server.received == []


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_client_that_is_closed_while_it_waits_says_so(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo_client.retries._FIRST_PAUSE_SECONDS", 0.001)
    stream = Answer(200, ": silence\n\n", (("Content-Type", "text/event-stream"),), hold=threading.Event())
    with serve_script(stream) as server, open_client(kind, server.url) as client, ThreadPoolExecutor(1) as threads:
        try:
            waiting = threads.submit(client.wait, "j", 10)
            wait_until(lambda: bool(server.received))
            client.close()
            with pytest.raises(GRPOError, match="the client is closed; make a new one"):
                waiting.result(PATIENCE_SECONDS)
        finally:
            assert stream.hold is not None
            stream.hold.set()


def test_a_package_that_is_missing_is_named(grpo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(MissingPackage, match="pip install numpy"):
        grpo.predict_array("m", [])


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_missing_server_is_reported(kind: str, server_url: str) -> None:
    nobody = server_url.rpartition(":")[0] + ":1"
    with open_client(kind, nobody, max_retries=0) as client:
        with pytest.raises(ServerUnreachable, match="is the server running"):
            client.health()
        with pytest.raises(ServerUnreachable, match="is the server running"):
            client.wait("x")
