"""Imports go one way: run_api, api, service, grpo, grpo_core."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
ORDER = ["grpo_core", "grpo", "grpo_zoo", "service", "api", "run_api"]
WEB_PACKAGES = {"fastapi", "starlette", "uvicorn", "pydantic", "pydantic_settings", "fastapi_offline", "cachetools"}


def list_imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def list_files(room: str) -> list[Path]:
    return [*(ROOT / room).glob("**/*.py"), *([ROOT / f"{room}.py"] if (ROOT / f"{room}.py").exists() else [])]


def test_every_room_imports_only_from_the_rooms_behind_it() -> None:
    for level, room in enumerate(ORDER):
        files = list_files(room)
        assert files, room
        for file in files:
            outer = set(ORDER[level + 1 :]) & set(list_imports(file))
            assert not outer, f"{file.name} imports {outer}"


def test_the_library_has_no_web_dependency() -> None:
    for room in ("grpo_core", "grpo", "grpo_zoo"):
        for file in list_files(room):
            assert not WEB_PACKAGES & set(list_imports(file)), file.name


def test_only_the_settings_read_the_process_environment() -> None:
    for room in ORDER:
        for file in list_files(room):
            if file.name not in ("settings.py", "run_api.py"):
                source = file.read_text()
                assert "os.environ" not in source, file.name
                assert "getenv" not in source, file.name
