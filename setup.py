"""What the packages are made of; everything else is in pyproject.toml.

The server's folders go under ``grpo_cli/server``, where ``grpo serve`` starts them: by themselves, ``api`` and
``service`` would take names that a user's own modules may have.
"""

from setuptools import find_namespace_packages, setup

_SERVER = "grpo_cli.server"
_LIBRARY = ("grpo_cli", "grpo_client", "grpo_core")

setup(
    package_dir={_SERVER: ".", f"{_SERVER}.service": "service"},
    packages=[
        *find_namespace_packages(include=[pattern for name in _LIBRARY for pattern in (name, f"{name}.*")]),
        *(f"{_SERVER}.{name}" for name in find_namespace_packages(include=["service", "service.*"])),
    ],
    py_modules=["grpo", "grpo_terminal", "grpo_zoo", f"{_SERVER}.api", f"{_SERVER}.run_api"],
    package_data={
        "grpo_core.options": ["presets.yml"],
        "grpo_client": ["py.typed"],
        **{f"{_SERVER}.service.{name}": ["*"] for name in ("dashboard.static", "http", "http.routes")},
    },
)
