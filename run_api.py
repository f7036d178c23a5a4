"""Start the web service: ``python run_api.py --host 127.0.0.1 --port 8000 --models-dir models``."""

import argparse
import gc
import logging
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

# Read when NumPy is imported, and torch by tasks in threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from api import create_app
from service.extensions import ExtensionError
from service.http.limits.connections import Connection
from service.http.shutdown import Server
from service.logs import configure_logs
from service.models.folder_lock import lock_folder
from service.settings import Settings, UnsafeSettingsError

logger = logging.getLogger("grpo.service")

_KEEP_ALIVE_SECONDS = 5
_DRAIN_SECONDS = 5
_SWITCH_SECONDS = 0.0005


def main() -> int:
    """Serve until interrupted.

    :return: The exit status: 0, 1 if the server could not start, or 2 if the settings are invalid.
    """
    with ExitStack() as held:
        try:
            settings = Settings.model_validate(_parse_flags())
            settings.check_exposure()
            lock = held.enter_context(lock_folder(settings.models_dir))
            configure_logs(settings.log_style)
            app = create_app(settings, lock)
        except ValidationError as error:
            # A violation that concerns two settings has no location.
            problems = (": ".join([*map(str, e["loc"]), e["msg"]]) for e in error.errors(include_input=False))
            return _refuse("; ".join(problems))
        except (UnsafeSettingsError, ExtensionError, OSError) as error:
            return _refuse(str(error))
        return _serve(app, settings)


def _serve(app: FastAPI, settings: Settings) -> int:
    # A request then waits a tenth of the default time for a training thread to release the interpreter.
    sys.setswitchinterval(_SWITCH_SECONDS)
    # What the imports have made is there to stay; to search it for garbage would hold all requests up for 60 ms.
    gc.freeze()
    service = app.state.service
    server = Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=Connection,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_DRAIN_SECONDS,
            server_header=False,
            # For the dashboard's socket; by default a visitor could send 16 MiB at once.
            ws_max_size=settings.max_body_bytes,
            log_config=None,  # configure_logs covers its loggers too
            access_log=False,  # AccessLog says more, and leaves out what comes by the thousand
        ),
        service.begin_close,
    )
    status = 1
    try:
        server.run()
        status = 0 if server.started else 1
    except Exception:
        logger.critical("the server ends because of an error", exc_info=True)
    finally:  # it may have ended before it could tell the application
        service.close()
    if service.executor.is_busy:
        # A thread that hangs in its environment cannot be killed, and may crash an interpreter that ends around it.
        os._exit(status)
    return status


def _parse_flags() -> dict[str, Any]:
    parser = argparse.ArgumentParser(description="Train and serve policies over HTTP.", allow_abbrev=False)
    parser.add_argument("--host", help="address to listen on (GRPO_HOST, default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="TCP port (GRPO_PORT, default 8000)")
    parser.add_argument("--models-dir", type=Path, help="folder of the model files (GRPO_MODELS_DIR, default models)")
    parser.add_argument(
        "--env-module",
        action="append",
        dest="env_modules",
        metavar="MODULE",
        help="your own module that registers environments or reward functions; may be repeated (GRPO_ENV_MODULES)",
    )
    return {name: value for name, value in vars(parser.parse_args()).items() if value is not None}


def _refuse(reason: str) -> int:
    sys.stderr.write(f"grpo: {reason}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
