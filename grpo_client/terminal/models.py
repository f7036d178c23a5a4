"""The commands of models."""

import argparse
from pathlib import Path
from typing import Any

from grpo_client.answers.text import describe_facts
from grpo_client.client import Client
from grpo_client.files import EXPORT_FORMATS, VIDEO_FORMATS
from grpo_client.terminal import reports
from grpo_client.terminal.command import PROGRAM, SAVED_HOW, Command, Reply, add_command, report_saved
from grpo_client.terminal.values import read_json, read_observation
from grpo_terminal import UsageError


def add_model_commands(commands: Any) -> None:
    """Add the commands of models."""
    add_command(commands, "models", _list_models, "list the models")
    predict = _add_for_model(commands, "predict", _predict, "ask a policy for an action")
    predict.add_argument(
        "observation",
        nargs="+",
        help="numbers, such as 0.1 0 0.05 0, also as NumPy prints them, or JSON: '[0.1, 0, 0.05, 0]'",
    )
    predict.add_argument("--masks", help="JSON: which actions are allowed")
    _add_for_model(commands, "card", _show_card, "show the card of a model")
    evaluate = _add_for_model(commands, "evaluate", _evaluate, "compare a policy with random actions")
    evaluate.add_argument("-n", "--episodes", type=int, default=20, help="number of episodes (%(default)s)")
    video = _add_for_model(commands, "video", _film, "film an episode")
    video.add_argument("path", help=f"file to save, ending in .{' or .'.join(VIDEO_FORMATS)}{SAVED_HOW}")
    video.add_argument("--max-steps", type=int, default=500, help="longest film, in steps (%(default)s)")
    for playing in (evaluate, video):
        playing.add_argument("--seed", type=int, default=0, help="seed of the first episode (%(default)s)")
    for acting in (predict, evaluate, video):
        acting.add_argument(
            "--stochastic", action="store_true", help="sample actions instead of taking the most likely"
        )
    download = _add_for_model(commands, "download", _download, "save a model file")
    download.add_argument("path", nargs="?", help=f"file to save, or folder for MODEL.zip; default: here{SAVED_HOW}")
    _add_for_model(commands, "versions", _list_versions, "list the versions of a model")
    alias = _add_for_model(commands, "alias", _set_alias, "point an alias at a version of a model")
    alias.add_argument("alias", help="such as prod: MODEL@prod then means that version")
    alias.add_argument("--delete", action="store_true", help="delete the alias")
    rollback = _add_for_model(commands, "rollback", _roll_back, "make an earlier version the newest again")
    for choosing, default in ((alias, "the newest"), (rollback, "the one before the newest")):
        choosing.add_argument("--version", type=int, help=f"its number; default: {default}")
    export = _add_for_model(commands, "export", _export, "save a policy as ONNX or TorchScript")
    export.add_argument("path", help=f"file to save, ending in {' or '.join(EXPORT_FORMATS)}{SAVED_HOW}")
    export.add_argument("--masks", action="store_true", help="have it take action masks beside every observation")
    upload = _add_for_model(commands, "upload", _upload, "put a model file on the server")
    upload.add_argument("path", nargs="?", type=Path, help="the file; default: MODEL.zip")
    upload.add_argument("--name", help=argparse.SUPPRESS)  # as it was written before MODEL came first
    upload.add_argument("--overwrite", action="store_true", help="replace a model of that name")
    _add_for_model(commands, "delete", _delete, "delete a model")


def _add_for_model(commands: Any, name: str, run: Command, text: str) -> argparse.ArgumentParser:
    parser = add_command(commands, name, run, text)
    parser.add_argument("model", help="name of a model")
    return parser


def _predict(client: Client, options: argparse.Namespace) -> Reply:
    observation, masks = read_observation(options.observation), read_json("--masks", options.masks)
    prediction = client.predict(options.model, observation, not options.stochastic, masks)
    is_explained = prediction.value is None and not options.json
    value_check = client.model(options.model).value_check if is_explained else None
    return Reply(prediction.to_json(), reports.describe_prediction(prediction, value_check))


def _list_models(client: Client, options: argparse.Namespace) -> Reply:
    models = client.models()
    return Reply([model.to_json() for model in models], reports.list_models(models))


def _show_card(client: Client, options: argparse.Namespace) -> Reply:
    card = client.model(options.model)
    return Reply(card.to_json(), describe_facts(card.to_json()))


def _evaluate(client: Client, options: argparse.Namespace) -> Reply:
    comparison = client.evaluate(options.model, options.episodes, options.seed, not options.stochastic)
    return Reply(comparison.to_json(), reports.describe_comparison(comparison))


def _film(client: Client, options: argparse.Namespace) -> Reply:
    video = client.video(options.model, options.path, options.seed, not options.stochastic, options.max_steps)
    return Reply(video.to_json(), f"saved {video.path}: {video.n_steps} steps, reward {video.reward}")


def _download(client: Client, options: argparse.Namespace) -> Reply:
    return report_saved(client.download(options.model, options.path))


def _export(client: Client, options: argparse.Namespace) -> Reply:
    return report_saved(client.export(options.model, options.path, options.masks))


def _upload(client: Client, options: argparse.Namespace) -> Reply:
    if options.name is not None and options.path is not None:
        raise UsageError("MODEL and --name exclude each other; leave --name out, and write MODEL FILE.")
    name, path = _name_upload(options.model, options.path)
    if not path.is_file():
        raise UsageError(
            f"{path} is not a file; name one that GRPO.save or download wrote: {PROGRAM} upload MODEL FILE."
        )
    card = client.upload(options.name or name, path, options.overwrite)
    return Reply(card.to_json(), f"uploaded {card.name}: {card.n_bytes} bytes, sha256 {card.sha256}")


def _name_upload(model: str, path: Path | None) -> tuple[str, Path]:
    """Return the name and the file of an upload; a file alone gives the model its name."""
    if path is not None:
        return model, path
    file = Path(model)
    is_zip = file.suffix.lower() == ".zip"  # the name of a model may have a dot too
    if is_zip or file.is_file():
        return file.stem if is_zip else file.name, file
    return model, Path(f"{model}.zip")


def _list_versions(client: Client, options: argparse.Namespace) -> Reply:
    listed = client.versions(options.model)
    return Reply(listed.to_json(), reports.list_versions(listed))


def _set_alias(client: Client, options: argparse.Namespace) -> Reply:
    if options.delete:
        if options.version is not None:
            raise UsageError("--delete and --version exclude each other; leave one out.")
        deleted = client.delete_alias(options.model, options.alias)
        return Reply(deleted.to_json(), f"deleted {deleted.model_name}@{deleted.alias}")
    alias = client.set_alias(options.model, options.alias, options.version)
    before = "" if alias.previous_version is None else f", before version {alias.previous_version}"
    return Reply(alias.to_json(), f"{alias.model_name}@{alias.alias} is version {alias.version}{before}")


def _roll_back(client: Client, options: argparse.Namespace) -> Reply:
    done = client.rollback(options.model, options.version)
    return Reply(done.to_json(), f"{done.message}, as version {done.version}: {done.model_name}")


def _delete(client: Client, options: argparse.Namespace) -> Reply:
    deleted = client.delete(options.model)
    return Reply(deleted.to_json(), f"{deleted.message}: {deleted.model_name}")
