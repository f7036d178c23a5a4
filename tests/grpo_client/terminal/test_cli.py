"""The client's commands, against a real server."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from grpo_client.answers.text import clean
from grpo_client.terminal.cli import main, make_parser
from grpo_client.terminal.command import name_commands
from grpo_client.terminal.values import read_dimension, read_observation, read_settings
from tests.conftest import RegisterEnv
from tests.environments import Gate, LineEnv
from tests.grpo_client.scripted_server import Answer, make_status, serve_script
from tests.models import make_model
from tests.support import PATIENCE_SECONDS, serve, wait_until

ROOT = Path(__file__).parents[3]
JOB = ["--env", "CartPole-v1", "-n", "64", "--seed", "0", "--name", "m"]


def make_command(*arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return ``python -m grpo_client`` with arguments, and its process environment."""
    return [sys.executable, "-m", "grpo_client", *arguments], {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command, environment = make_command(*arguments)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture
def model(app: FastAPI) -> str:
    """An untrained model on the server."""
    content = make_model("CartPole-v1").to_bytes(env_name="CartPole-v1")
    (app.state.service.settings.models_dir / "m.zip").write_bytes(content)
    return "m"


def test_a_job_is_watched_to_its_end(server_url: str, tmp_path: Path) -> None:
    done = run("train", *JOB, "--watch", "--url", server_url, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    bar, report = done.stderr, done.stdout.splitlines()
    assert "completed" in bar
    assert "100%" in bar
    assert report[0].startswith("completed: ")
    assert "the saved policy: mean reward" in done.stdout
    assert "mean reward while training" in done.stdout
    assert any(line.startswith("verdict: ") for line in report)
    assert report[-1] == "model: m"


def test_a_script_reads_json_and_no_bar(server_url: str, tmp_path: Path) -> None:
    done = run(
        "train", *JOB, "--set", "gamma=0.9", "net_arch=[8]", "--watch", "--json", "--url", server_url, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    status = json.loads(done.stdout)
    assert (status["status"], status["config"]["gamma"], status["config"]["net_arch"]) == ("completed", 0.9, [8])


def test_a_job_is_followed_by_id_or_as_the_latest(ask: Any) -> None:
    exit_status, said, _ = ask("train", *JOB, "--json")
    job_id = json.loads(said)["job_id"]
    assert exit_status == 0
    assert ask("wait", job_id, "--timeout", str(PATIENCE_SECONDS))[1].startswith("completed: ")
    assert ask("watch")[1] == ask("status", job_id)[1]
    assert json.loads(ask("jobs", "--json")[1])[0]["job_id"] == job_id
    assert ask("jobs", "--status", "running")[1] == ""
    header, row = ask("jobs")[1].splitlines()
    assert header.split() == ["job", "status", "done", "environment", "reward", "model"]
    first, *middle, last = row.split()
    assert (first, middle[:3], last) == (job_id, ["completed", "100%", "CartPole-v1"], "m")
    assert float(middle[3]) >= 1
    assert ask("metrics")[1].startswith("timesteps,elapsed_seconds,")
    assert json.loads(ask("metrics", "--json")[1])["job_id"] == job_id


def test_a_job_is_labelled_found_and_forgotten(ask: Any) -> None:
    job_id = json.loads(ask("train", *JOB, "--json")[1])["job_id"]
    ask("wait")
    said = ask("label", "latest", "--name", "The first", "--tags", "paper", "b", "--note", "Why not?", "--hide")[1]
    assert said == f"The first (hidden), job {job_id}\ntags: paper, b\nWhy not?\n"
    for found in (["--hidden"], ["--tag", "b", "--sort=-mean_reward"], ["--search", "why first"]):
        assert [job["job_id"] for job in json.loads(ask("jobs", "--json", *found)[1])] == [job_id]
    assert ask("jobs", "--shown")[1] == ask("jobs", "--env", "Pendulum-v1")[1] == ""
    assert ask("label", job_id, "--name", "", "--tags", "--note", "", "--show")[1] == f"m, job {job_id}\n"
    for without_a_job in (["label", "--tags", "a", job_id], ["forget"]):  # the last word there is a tag
        with pytest.raises(SystemExit, match=r"^2$"):
            ask(*without_a_job)
    assert ask("label", job_id)[0] == 2
    assert ask("forget", job_id)[1] == f"Training job deleted: {job_id}\n"
    assert ask("jobs")[1] == ""


def test_an_interrupt_leaves_the_job_and_says_how_to_stop_it(tmp_path: Path) -> None:
    released = threading.Event()
    accepted = Answer(200, '{"job_id": "j", "message": "Training started", "config": {}, "config_origins": {}}')
    stream = Answer(200, headers=(("Content-Type", "text/event-stream"),), n_missing_bytes=1, hold=released)
    with serve_script(accepted, stream) as server:
        command, environment = make_command("train", "--watch", "--url", server.url)
        with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
            try:
                wait_until(lambda: len(server.received) == 2)
                process.send_signal(signal.SIGINT)
                _, complaint = process.communicate()
            finally:
                process.kill()
        released.set()
    assert process.returncode == 130
    program = "python -m grpo_client"
    assert f"the job goes on; {program} watch j watches it again, {program} stop j stops it." in complaint
    assert [request.path for request in server.received] == ["/train", "/training/j/events"]


def test_a_job_that_fails_is_reported_and_ends_in_failure(ask: Any, register_env: RegisterEnv) -> None:
    n_steps = iter(range(10**9))

    def fail() -> None:
        if next(n_steps) > 300:
            raise RuntimeError("the motor broke")

    env_name = register_env(lambda: LineEnv(on_step=fail), max_episode_steps=5)
    exit_status, said, _ = ask("train", "--env", env_name, "--set", "group_mode=episode", "n_steps=64", "--watch")
    assert exit_status == 1
    assert "error: RuntimeError: the motor broke" in said
    assert "verdict: " not in said  # it would say no more


def test_a_wait_that_takes_too_long_ends_in_failure(ask: Any, register_env: RegisterEnv) -> None:
    gate = Gate()
    env_name = register_env(lambda: LineEnv(on_step=gate.pass_through), max_episode_steps=5)
    gate.admit(100)
    try:
        assert ask("train", "--env", env_name, "--set", "group_mode=episode", "n_steps=64", "n_eval_episodes=0")[0] == 0
        exit_status, _, complaint = ask("wait", "--timeout", "0.2")
    finally:
        gate.admit()
    assert exit_status == 1
    assert "it goes on" in complaint
    ask("stop")


def test_a_policy_is_asked(ask: Any, model: str) -> None:
    exit_status, said, _ = ask("predict", model, "[0.1, 0, 0.05, 0]", "--masks", "[false, true]")
    assert exit_status == 0
    assert said.splitlines()[:2] == ["action         1", "probabilities  [0.0, 1.0]"]
    answers = [
        json.loads(ask("predict", model, *words, "--json")[1])
        for words in (["[0.1, 0, -0.05, 0]"], ["0.1", "0", "-0.05", "0"])
    ]
    assert answers[0]["action"] in (0, 1)
    assert answers[1] == answers[0]  # however it is written
    assert "not known: only a server's job checks them" in said


def test_a_value_whose_check_failed_is_said_to_have_failed_it(ask: Any, app: FastAPI) -> None:
    check = {"is_meaningful": False, "gamma": 0.9, "n_states": 9, "correlation": 0.97, "error": 0.2055, "spread": 0.4}
    check |= {"lowest": 0.0, "highest": 9.0}
    content = make_model("CartPole-v1").to_bytes(env_name="CartPole-v1", value_check=check)
    (app.state.service.settings.models_dir / "checked.zip").write_bytes(content)
    said = ask("predict", "checked", "0", "0", "0", "0")[1]
    assert "not shown: the check of its values failed (error 0.2055, at most 0.2; correlation 0.97, at least" in said


@pytest.mark.parametrize(
    ("words", "observation"),
    [
        (["0", "-1e-3", "0", "0"], [0, -0.001, 0, 0]),
        (["-3.", "-0.1,", "-1E5,", "-.5"], [-3.0, -0.1, -1e5, -0.5]),
        ([".5", ".5", "3."], [0.5, 0.5, 3.0]),
        (["+0.5", "+2"], [0.5, 2]),
        (["0,0,0,0"], [0, 0, 0, 0]),
        (["-0.1,0,-.2"], [-0.1, 0, -0.2]),
        (["0 0 0 0"], [0, 0, 0, 0]),
        (["[0. 0.1]"], [0.0, 0.1]),
        (["[", "0.1", "-2.e-03]"], [0.1, -0.002]),
        (["[[ 0.  1.]\n [-2.  3.]]"], [[0.0, 1.0], [-2.0, 3.0]]),
        (["-3."], -3.0),
        (["3,"], [3]),
        (["[1,2]", "[3,4]"], [[1, 2], [3, 4]]),
    ],
)
def test_an_observation_is_read_as_people_and_numpy_write_it(words: list[str], observation: Any) -> None:
    options = make_parser().read(["predict", "m", *words, "--json"])
    read = read_observation(options.observation)
    assert json.dumps(read) == json.dumps(observation)  # whole numbers stay whole


@pytest.mark.parametrize(
    ("text", "value"),
    [(".99", 0.99), ("-.5", -0.5), ("1.", 1.0), ("-.5e-3", -0.0005), ("0.9", 0.9)]
    + [(word, word) for word in (".", "1_0", "007", "nan", ".9e999", "1.2.3", "v1.")],
)  # fmt: skip
def test_settings_are_read_as_people_write_numbers(text: str, value: Any) -> None:
    assert read_settings([f"gamma={text}"], {}) == {"gamma": value}
    assert read_dimension(f"gamma={text},1") == ("gamma", [value, 1])


def test_a_policy_is_evaluated_and_filmed(ask: Any, model: str, tmp_path: Path) -> None:
    exit_status, said, _ = ask("evaluate", model, "-n", "3")
    assert exit_status == 0
    assert said.startswith("m in CartPole-v1: ")
    assert said.count("3 episodes") == 2
    assert json.loads(ask("evaluate", model, "-n", "3", "--json")[1])["evaluation"]["n_episodes"] == 3
    film = tmp_path / "film.gif"
    assert ask("video", model, str(film), "--max-steps", "4")[1] == f"saved {film}: 4 steps, reward 4.0\n"
    assert film.read_bytes().startswith(b"GIF89a")


def test_models_are_listed_described_and_deleted(ask: Any, model: str) -> None:
    assert ask("models")[1].splitlines()[1].split() == ["m", "saved"]
    assert "env_name           CartPole-v1" in ask("card", model)[1]
    assert ask("delete", model)[1] == "Model deleted: m\n"
    assert ask("models")[1] == ""
    exit_status, said, complaint = ask("card", model)
    assert (exit_status, said) == (1, "")
    assert complaint.startswith("grpo-client: there is no model")


def test_a_model_file_is_downloaded_exported_and_uploaded(ask: Any, model: str, tmp_path: Path) -> None:
    file = tmp_path / "again.zip"
    file.write_bytes(b"before")
    assert ask("download", model, str(file)) == (0, f"saved {file}\n", "")
    assert file.read_bytes().startswith(b"PK")
    assert ask("download", model, f"{tmp_path}/new/") == (0, f"saved {tmp_path}/new/m.zip\n", "")
    policy = tmp_path / "again.pt"
    assert ask("export", model, str(policy), "--masks") == (0, f"saved {policy}\n", "")
    assert policy.read_bytes().startswith(b"PK")
    assert ask("upload", str(file))[1].startswith(f"uploaded again: {file.stat().st_size} bytes, sha256 ")
    exit_status, _, complaint = ask("upload", str(file))
    assert exit_status == 1
    assert "(HTTP 409)" in complaint
    assert ask("upload", str(file), "--overwrite")[0] == 0
    assert json.loads(ask("upload", str(file), "--name", "third", "--json")[1])["name"] == "third"
    assert json.loads(ask("upload", "fourth", str(file), "--json")[1])["name"] == "fourth"


@pytest.mark.parametrize("command", ["curve", "download", "export", "video"])
def test_help_says_that_a_file_is_replaced(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "a file of that name is replaced" in " ".join(capsys.readouterr().out.split())


def test_an_upload_and_a_download_of_a_name_alone_meet_in_the_same_file(
    ask: Any, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ask("download", model)[1] == "saved m.zip\n"
    assert ask("upload", model, "--overwrite")[1].startswith("uploaded m: ")


def test_a_name_with_a_dot_is_not_taken_for_a_file(
    ask: Any, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ask("download", model, "m.v2.zip")[0] == 0
    assert ask("upload", "m.v2")[1].startswith("uploaded m.v2: ")
    assert ask("upload", "m.v2.zip", "--overwrite")[1].startswith("uploaded m.v2: ")
    Path("m.v2.zip").rename("m.v3")
    assert ask("upload", "m.v3")[1].startswith("uploaded m.v3: ")


def test_options_stand_before_the_command_or_after_it(server_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["--url", server_url, "--json", "environments", "cartpole"],
        ["environments", "cartpole", "--json", f"--url={server_url}"],
    ):
        assert main(command) == 0
        assert "CartPole-v1" in str(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(("word", "meant"), [("list", "jobs"), ("ps", "jobs"), ("cancel", "stop")])
def test_what_other_programs_call_a_command_leads_to_it(
    word: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main([word])
    assert f"'{word}' is not a command; did you mean '{meant}'?" in capsys.readouterr().err


def test_versions_are_listed_promoted_and_rolled_back(ask: Any, model: str, tmp_path: Path) -> None:
    file = tmp_path / "m.zip"
    make_model("CartPole-v1", 5).save(file)
    assert ask("upload", str(file), "--overwrite")[0] == 0
    assert ask("alias", model, "prod", "--version", "1") == (0, "m@prod is version 1\n", "")
    rows = ask("versions", model)[1].splitlines()
    assert rows[0].split() == ["version", "aliases", "status", "created", "steps", "reward", "job", "sha256"]
    assert rows[1].split()[:3] == ["2", "-", "loaded"]
    assert rows[2].split()[:2] == ["1", "prod"]
    assert json.loads(ask("versions", model, "--json")[1])["aliases"] == {"prod": 1}
    assert ask("alias", model, "prod")[1] == "m@prod is version 2, before version 1\n"
    assert ask("rollback", model)[1] == "Version 1 is the newest again, as version 3: m\n"
    assert ask("alias", model, "prod", "--delete")[1] == "deleted m@prod\n"
    assert ask("alias", model, "prod", "--delete", "--version", "1")[0] == 2


def test_environments_and_rewards_are_listed(ask: Any) -> None:
    assert "CartPole-v1" in ask("environments", "cartpole")[1]
    assert "restorable               true" in ask("environment", "CartPole-v1")[1]
    assert "optimized_cartpole" in ask("rewards")[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["predict", "m", "[0.1"], "observation [0.1 is not JSON"),
        (["predict", "m", "NaN"], "observation NaN is not JSON"),
        (["predict", "m", "0", "-inf"], "observation 0 -inf is not JSON"),
        (["predict", "m", "[0. 0.1"], "observation [0. 0.1 is not JSON"),
        (["predict", "m", "0,,1"], "observation 0,,1 is not JSON"),
        (["predict", "m", "1.e999", "0"], "observation 1.e999 0 is not JSON"),
        (["predict", "m", "[0. ... 1.]"], "observation [0. ... 1.] is not JSON"),
        (["predict", "m", "1", "--masks", "x"], "--masks x is not JSON"),
        (["predict", "m", "[" * 20_000], "[[[[[[[[[[[[[[[[[[[[... is nested too deeply"),
        (["predict", "m", "1", "[" * 20_000], "is nested too deeply"),
        (["train", "--set", "gamma=" + "[" * 20_000], "is nested too deeply"),
        (["train", "--set", "n_steps=64", "n_steps=32"], "sets n_steps for the second time; leave one out"),
        (["train", "--set", "n_steps=64", "--set", "n_steps=32"], "sets n_steps for the second time"),
        (["train", "--set", 'env_kwargs={"a":1,"a":2}'], '"a" stands twice in an object of JSON; leave one out'),
        (["predict", "m", '{"x": {"a":1,"a":2}}'], '"a" stands twice'),
        (["sweep", "start", "--try", 'gamma={"low":1,"low":2}'], '"low" stands twice'),
        (["train", "--set", "gamma"], "--set gamma is not allowed: write KEY=VALUE"),
        (["train", "--seed", "1", "--set", "seed=2"], "another option already sets seed to 1; leave one out"),
        (["video", "m", "film.avi"], "end its name in .gif or .mp4"),
        (["export", "m", "policy.zip"], "end its name in .onnx (onnx) or .pt (torchscript)"),
        (["download", "m", ""], "path='' is empty; name a file"),
        (["video", "m", "films/"], "path='films/' is a folder; name a file in it"),
        (["versions", ""], "'' is neither a name nor an id"),
        (["delete", "m/aliases/prod"], "holds a '/'"),
        (["predict", "m", "1e999"], "the request cannot be sent"),
        (["upload", "m", "m.zip", "--name", "n"], "MODEL and --name exclude each other"),
        (["upload", "gone.zip"], "gone.zip is not a file"),
        (["upload", "gone"], "gone.zip is not a file"),
        (
            ["upload", "m.zip", "m"],
            "m is not a file; name one that GRPO.save or download wrote: grpo-client upload MODEL",
        ),
    ],
)
def test_a_command_line_that_cannot_work_is_a_usage_error(ask: Any, arguments: list[str], said: str) -> None:
    exit_status, _, complaint = ask(*arguments)
    assert exit_status == 2
    assert said in complaint


@pytest.mark.parametrize("url", ["localhost:8000", ""])
def test_a_malformed_url_is_a_usage_error(capsys: pytest.CaptureFixture[str], url: str) -> None:
    assert main(["models", "--url", url]) == 2
    assert "write it as http://HOST:PORT" in capsys.readouterr().err


def test_a_key_that_cannot_work_is_not_blamed_on_the_url(ask: Any) -> None:
    exit_status, _, complaint = ask("models", "--api-key", "two\nlines")
    assert exit_status == 2
    assert complaint.startswith("grpo-client: --api-key cannot be sent: api_key has characters")
    assert "--url" not in complaint


@pytest.mark.parametrize("seconds", ["-1", "nan", "soon"])
@pytest.mark.parametrize("command", [["wait"], ["watch"], ["sweep", "wait"]])
def test_nobody_waits_for_less_than_no_time(
    command: list[str], seconds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main([*command, "--timeout", seconds])
    assert f"--timeout: {seconds} is not allowed: write a number of seconds, at least 0." in capsys.readouterr().err


INTERRUPTION = "interrupted by restart: the server ended while the job was running; POST /training/{}/resume goes on."


def test_all_jobs_that_the_end_of_the_server_interrupted_are_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    line = {"status": "failed", "progress": 0.5, "env_name": "e", "model_name": "m", "current_timesteps": 4}
    line |= {"total_timesteps": 9, "created_at": "2026-11-25T10:00:00Z"}
    failed = Answer(200, json.dumps({"jobs": [{**line, "job_id": name} for name in "abcd"]}))
    line |= {"status": "stopped", "created_at": "2026-11-25T11:00:00Z"}
    stopped = Answer(200, json.dumps({"jobs": [{**line, "job_id": name} for name in "ef"]}))

    def show(name: str, error: str, status: str = "failed", **changes: Any) -> Answer:
        shown = make_status(job_id=name, status=status, error_message=error.format(name), **changes)
        return Answer(200, json.dumps(shown))

    def resume(name: str, timesteps: int) -> Answer:
        resumed = {"job_id": name, "message": "Training resumed", "timesteps": timesteps, "config": {}}
        return Answer(200, json.dumps(resumed))

    answers = [
        *(show("a", "whatever it says", ended_by="restart"), resume("a", 1234)),
        show("b", "the cable is loose"),
        show("c", INTERRUPTION, ended_by="restart", sweep_id="s"),
        *(show("d", INTERRUPTION, ended_by="restart"), Answer(409, '{"detail": "the name is taken"}')),
        show("e", "", "stopped", ended_by="stop"),
        *(show("f", "", "stopped", ended_by="shutdown"), resume("f", 0)),
    ]
    with serve_script(failed, stopped, *answers) as server:
        assert main(["resume", "interrupted", "--url", server.url]) == 1
        asked = [f"{request.method} {request.path}" for request in server.received]
    assert asked[2:] == [
        *("GET /training/a/status", "POST /training/a/resume"),
        *("GET /training/b/status", "GET /training/c/status"),
        *("GET /training/d/status", "POST /training/d/resume"),
        *("GET /training/e/status", "GET /training/f/status", "POST /training/f/resume"),
    ]
    assert capsys.readouterr().out.splitlines() == [
        "Training resumed from step 1,234: a",
        "job d is not resumed: the name is taken (HTTP 409)",
        "Training resumed from step 0: f",
        "jobs of a sweep go on with: grpo-client sweep resume s",
    ]


def test_a_job_that_a_shutdown_of_the_server_ended_is_not_done(capsys: pytest.CaptureFixture[str]) -> None:
    said = "the server was shut down while the job was queued; POST /training/j/resume lets it begin."
    status = make_status(status="stopped", ended_by="shutdown", error_message=said)
    event = f"id: 1\nevent: job.stopped\ndata: {json.dumps(status)}\n\n"
    with serve_script(
        Answer(200, json.dumps(status)), Answer(200, event, (("Content-Type", "text/event-stream"),))
    ) as server:
        assert main(["wait", "j", "--url", server.url]) == 1
    assert "error: the server was shut down while the job was queued; grpo-client resume j" in capsys.readouterr().out


def test_people_read_commands_in_the_place_of_requests(capsys: pytest.CaptureFixture[str]) -> None:
    status = make_status(status="failed", error_message=INTERRUPTION.format("j-1"))
    with serve_script(Answer(200, json.dumps(status)), Answer(200, json.dumps(status))) as server:
        main(["status", "--url", server.url])
        assert "; grpo-client resume j-1 goes on." in capsys.readouterr().out
        main(["status", "--json", "--url", server.url])
        assert json.loads(capsys.readouterr().out)["error_message"] == INTERRUPTION.format("j-1")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("GET /training/jobs lists them.", "grpo-client jobs lists them."),
        ("GET /models/m.v-2/versions lists those", "grpo-client versions m.v-2 lists those"),
        ("GET /models lists them.", "grpo-client models lists them."),
        ("GET /environments lists those that are.", "grpo-client environments lists those that are."),
        (
            "GET /sweeps lists them, and POST /sweeps starts",
            "grpo-client sweep list lists them, and grpo-client sweep start starts",
        ),
        ("POST /train starts one.", "grpo-client train starts one."),
        ("pick another model_name, or send replace=true.", "pick another model_name, or add --set replace=true."),
        (
            "if the GRPO server is there, set base_url to it",
            "if the GRPO server is there, give its URL with --url or GRPO_URL",
        ),
        ("choose another name or send overwrite=true.", "choose another name or add --overwrite."),
        (
            "it needs a key; send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY', or log in at /login.",
            "it needs a key; give the right one with --api-key or GRPO_API_KEY.",
        ),
        ("and DELETE /models/m.v-2, or", "and grpo-client delete m.v-2, or"),
        ("DELETE /models/m/aliases/prod", "DELETE /models/m/aliases/prod"),
        ("GET /models/m/card, GET /sweeps/s", "GET /models/m/card, GET /sweeps/s"),
    ],
)
def test_what_the_server_asks_for_is_said_as_it_is_typed(said: str, shown: str) -> None:
    assert name_commands(said) == shown


def test_a_refusal_is_reported_in_the_words_of_the_server(ask: Any) -> None:
    exit_status, said, complaint = ask("train", "--set", "n_step=64")
    assert (exit_status, said) == (1, "")
    assert complaint == "grpo-client: n_step: unknown field; did you mean n_steps? (HTTP 422)\n"
    assert ask("train", "--set", "self=1")[2].startswith("grpo-client: self: unknown field")


@pytest.mark.parametrize("overrides", [{"api_key": "0123456789abcdef"}], ids=["with a key"])
def test_the_key_and_the_server_come_from_an_option_or_a_variable(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(app) as port:
        command = ["models", "--url", f"http://127.0.0.1:{port}"]
        assert main(command) == 1
        assert main([*command, "--api-key", "0123456789abcdef"]) == 0
        monkeypatch.setenv("GRPO_API_KEY", "0123456789abcdef")
        assert main(command) == 0
        monkeypatch.setenv("GRPO_URL", f"http://127.0.0.1:{port}")
        assert main(["models"]) == 0


def test_a_server_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    listed = json.dumps({"models": [{"name": "\x1b]0;title\x07", "status": "saved"}]})
    with serve_script(Answer(200, listed)) as server:
        assert main(["models", "--url", server.url]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["\\x1b]0;title\\x07", "saved"]
    assert clean("a\n\tb\r\x7f") == "a\n\tb\\r\\x7f"
