"""Names that would lead out of the models folder, on every path that takes one."""

import json
import os
import sys
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from fastapi.testclient import TestClient

from service.schemas.fields import is_model_name
from service.settings import Settings
from tests.fuzz.watch import watch
from tests.suites import SEED, Report, choose

N_NAMES = choose(150, 20_000)
FIXED = [
    *("../escaped", "..", ".", "a/b", "a\\b", "%2e%2e", "..%2fescaped", "a\0b", "a\n", "\u202egpj.exe", "\ud800"),
    *("CON", "nul.zip", "com1", "-rf", ".hidden", ".lock", ".tmp-1", "dot.", " ", "", "x" * 10_000, "/etc/passwd"),
    *("file:///etc/passwd", "~root", "$HOME", "`id`", "a;b", "\uff0e\uff0e\uff0f", "m\u0131", "zip", "m.zip/../x"),
]
JSON = {"content-type": "application/json"}
ALPHABET = [
    *"abcXYZ019._-/\\%:~?#&;|$`'\"<>* ",
    "..",
    "../",
    "%2f",
    "%00",
    "\0",
    "\n",
    "\u202e",
    "\ud800",
    "\u00e9",
    " ",
]


def make_names() -> list[str]:
    rng = np.random.default_rng(SEED)
    drawn = ["".join(rng.choice(ALPHABET, rng.integers(1, 12))) for _ in range(N_NAMES)]
    return [*FIXED, *drawn]


def test_no_name_leads_out_of_the_folder(client: TestClient, settings: Settings, tmp_path: Path) -> None:
    outside = tmp_path / "escaped.zip"
    outside.write_bytes(b"precious")
    report = Report("fuzz", "names")
    for path in ("/models/warm", "/models/warm/file", "/models"):  # what is imported at first use
        client.get(path)
    for name in make_names():
        report.count("names")
        quoted = quote(name, safe="", errors="surrogatepass")
        with watch() as events:
            answers = [
                client.get(f"/models/{quoted}"),
                client.get(f"/models/{quoted}/file"),
                client.delete(f"/models/{quoted}"),
                client.put(f"/models/{quoted}/file", content=b"PK", headers={"content-type": "application/zip"}),
                client.post("/inference", content=b'{"model_name":%s,"observation":[0]}' % to_json(name), headers=JSON),
                client.post("/train", content=b'{"model_name":%s,"total_timesteps":0}' % to_json(name), headers=JSON),
            ]
        for answer in answers:
            report.count(str(answer.status_code))
            assert answer.status_code < 500, (name, answer.text)
        opened = [str(arguments[0]) for event, arguments in events if event == "open"]
        strange = [path for path in opened if isinstance(path, str) and not is_expected(path, settings.models_dir)]
        assert not strange, (name, strange)
        if not is_model_name(name):
            assert {answer.status_code for answer in answers[3:]} <= {307, 400, 404, 405, 415, 422}, name
    report.write()
    assert outside.read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == ["escaped.zip", "models"]


def to_json(name: str) -> bytes:
    return json.dumps(name).encode()


def is_expected(path: str, models_dir: Path) -> bool:
    """Return whether the server may open a file: models, and what it reads of the system and of its own code."""
    return path.startswith((str(models_dir), "/proc/", "/sys/", sys.prefix, os.getcwd())) or path.isdigit()


def test_the_watch_sees_what_is_opened(tmp_path: Path) -> None:
    with watch() as events, pytest.raises(FileNotFoundError):
        open(tmp_path / "escaped")
    assert [event for event, _ in events] == ["open"]
