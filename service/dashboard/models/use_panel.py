"""Ways to use a model outside the dashboard: commands and programs to copy, and files to take away."""

import json
import shlex
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from gymnasium import spaces

from grpo_core.export.policy_file import EXPORT_FORMATS
from service.dashboard.widgets.html_elements import Text, make_box, make_button, make_link, make_note
from service.spaces import count_numbers

# Longer observations, such as images, are not written out.
_MAX_NUMBERS = 32
_KEY_VARIABLE = "GRPO_API_KEY"


class UsePanel:
    """Recipes to copy, and links to the files.

    :param name: Name of the model, as the routes take it.
    :param space: What it observes.
    :param url: The server's URL.
    :param needs_key: Whether the server has an API key.
    """

    def __init__(self, name: str, space: spaces.Space[Any], url: str, needs_key: bool) -> None:
        for title, code in list_recipes(name, space, url, needs_key).items():
            with make_box("group", "details"):
                with make_box("", "summary"):
                    Text(title)
                with make_box("stack"):
                    with make_box("row-flex"):
                        copy = make_button("Copy", None, "tiny quiet", "content_copy", f"Copy: {title}")
                    text = Text(code, "code", "pre")
                copy.on("click", js_handler=f"() => grpoToasts.copy(getHtmlElement({text.id}))")
        with make_box("row-flex").style("flex-wrap: wrap") as self.controls:
            make_link("Model file", f"/models/{name}/file", "button", "download", download=f"{name}.zip")
            for format_name, export_format in EXPORT_FORMATS.items():
                if find_spec(export_format.package) is not None:
                    href = f"/models/{name}/export?format={format_name}"
                    title = {"onnx": "ONNX", "torchscript": "TorchScript"}[format_name]
                    make_link(title, href, "button", "download", download=f"{name}{export_format.suffix}")
        for format_name, export_format in EXPORT_FORMATS.items():
            if find_spec(export_format.package) is None:
                make_note(f"To export to {format_name}, on the server: {export_format.remedy}.")


def list_recipes(name: str, space: spaces.Space[Any], url: str, needs_key: bool) -> dict[str, str]:
    """Write the commands and programs that ask a model for an action, by title.

    :param name: Name of the model.
    :param space: What it observes.
    :param url: The server's URL.
    :param needs_key: Whether the server has an API key; the shell takes it from ``GRPO_API_KEY``, Python asks for it.
    """
    return {
        "curl": _write_curl(name, space, url, needs_key),
        "Python, from this server": _write_client(name, space, url, needs_key),
        "Python, without a server": _write_library(name, space),
        "ONNX, without this library": _write_onnx(name, space),
        "TorchScript, without this library": _write_torchscript(name, space),
        "Docker": _write_docker(name),
    }


def _write_curl(name: str, space: spaces.Space[Any], url: str, needs_key: bool) -> str:
    key = f' -H "Authorization: Bearer ${_KEY_VARIABLE}"' if needs_key else ""
    head = f'curl -X POST {url}/inference -H "Content-Type: application/json"{key} -d'
    # A Dict's keys are whatever the file's author chose, and a shell would run some of it.
    if count_numbers(space) > _MAX_NUMBERS:
        program = f"import json; print(json.dumps({{'model_name': {name!r}, 'observation': {_spell_lists(space)}}}))"
        return f"python3 -c {shlex.quote(program)} > observation.json\n{head} @observation.json"
    return f"{head} {shlex.quote(json.dumps({'model_name': name, 'observation': _sample(space)}))}"


def _write_client(name: str, space: spaces.Space[Any], url: str, needs_key: bool) -> str:
    imports = "from getpass import getpass\n\n" if needs_key else ""
    key = ', api_key=getpass("API key: ")' if needs_key else ""
    return (
        f"{imports}import numpy as np\nfrom grpo_client import Client\n\nobservation = {_spell(space)}\n"
        f'with Client("{url}"{key}) as grpo:\n    print(grpo.predict({name!r}, observation).action)'
    )


def _write_library(name: str, space: spaces.Space[Any]) -> str:
    return (
        f'import numpy as np\nfrom grpo import GRPO\n\nmodel = GRPO.load("{name}.zip")  # the model file, from below\n'
        f"actor = model.make_actor()  # takes observations as the environment gives them\n"
        f"observations = {_spell(space, batch=True)}\nactions = actor.best_actions(observations)\n"
        "print(actor.clip_actions(actions))"
    )


def _write_onnx(name: str, space: spaces.Space[Any]) -> str:
    if isinstance(space, spaces.Dict):
        named = {f"observation/{key}": _spell(part, batch=True) for key, part in space.spaces.items()}
    else:
        named = {"observation": _spell(space, batch=True)}
    feed = "".join(f"    {key!r}: {array},\n" for key, array in named.items())
    return (
        "import numpy as np\nimport onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("{name}.onnx")  # from below\n'
        f'observations = {{\n{feed}}}\n(actions,) = session.run(["action"], observations)\nprint(actions)'
    )


def _write_torchscript(name: str, space: spaces.Space[Any]) -> str:
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    tensors = {key: f"torch.as_tensor({_spell(part, batch=True)})" for key, part in parts.items()}
    named = "{" + ", ".join(f"{key!r}: {tensor}" for key, tensor in tensors.items()) + "}"
    return (
        f'import numpy as np\nimport torch\n\npolicy = torch.jit.load("{name}.pt")  # from below\n'
        "# A batch: of a single observation, observation[None].\n"
        f"observations = {named if isinstance(space, spaces.Dict) else tensors['']}\n"
        "print(policy(observations).numpy())"
    )


def _write_docker(name: str) -> str:
    return (
        "# In the repository; the key is of your choice, 16 characters and more.\n"
        "docker build -f deploy/Dockerfile -t grpo:cpu .\n"
        f"export {_KEY_VARIABLE}=...\n"
        f"docker run --detach --publish 127.0.0.1:8080:8000 --env {_KEY_VARIABLE} --volume grpo-models:/models "
        "grpo:cpu\n"
        f"curl -X PUT http://localhost:8080/models/{name}/file "
        f'-H "Authorization: Bearer ${_KEY_VARIABLE}" -H "Content-Type: application/zip" --data-binary @{name}.zip'
    )


def _sample(space: spaces.Space[Any]) -> Any:
    """Return an observation of zeros."""
    if isinstance(space, spaces.Dict):
        return {key: _sample(part) for key, part in space.spaces.items()}
    return _fill(list(space.shape or ()))


def _fill(shape: list[int]) -> Any:
    return [_fill(shape[1:]) for _ in range(shape[0])] if shape else 0


def _spell(space: spaces.Space[Any], batch: bool = False) -> str:
    """Write an observation of zeros in Python."""
    if isinstance(space, spaces.Dict):
        return "{" + ", ".join(f"{key!r}: {_spell(part, batch)}" for key, part in space.spaces.items()) + "}"
    shape = (1,) * batch + tuple(space.shape or ())
    if not shape:
        return "0"
    return f"np.zeros({shape}, np.{space.dtype})"


def _spell_lists(space: spaces.Space[Any]) -> str:
    """Write an observation of zeros in Python without NumPy and without double quotes."""
    if isinstance(space, spaces.Dict):
        parts: Mapping[str, spaces.Space[Any]] = space.spaces
        return "{" + ", ".join(f"{key!r}: {_spell_lists(part)}" for key, part in parts.items()) + "}"
    spelled = "0"
    for n in reversed(space.shape or ()):
        spelled = f"[{spelled}] * {n}"
    return spelled
