"""Start the web service: ``python run_api.py --host 127.0.0.1 --port 8000 --models-dir models``."""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

# Read when torch is imported, which the imports below do.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import uvicorn
from pydantic import ValidationError

from api import create_app
from service.settings import Settings, UnsafeSettingsError

_LIMIT_CONCURRENCY = 256
_KEEP_ALIVE_SECONDS = 5
_DRAIN_SECONDS = 5


def main() -> int:
    """Serve until interrupted; return the exit status: 0, or 2 if the settings cannot work."""
    try:
        settings = Settings.model_validate(_parse_flags())
        settings.check_exposure()
        app = create_app(settings)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
        return _refuse("; ".join(problems))
    except (UnsafeSettingsError, OSError) as error:
        return _refuse(str(error))
    # Uvicorn raises the signal that ended it once more when it is done; by default that would make a clean end a kill.
    signal.signal(signal.SIGTERM, lambda signal_number, frame: None)
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        limit_concurrency=_LIMIT_CONCURRENCY,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
        server_header=False,
    )
    if app.state.registry.count_active() > 0:
        # A job that hangs in its environment cannot be killed, and Python would wait for its thread forever.
        os._exit(0)
    return 0


def _parse_flags() -> dict[str, Any]:
    parser = argparse.ArgumentParser(description="Train and serve policies over HTTP.", allow_abbrev=False)
    parser.add_argument("--host", help="address to listen on (GRPO_HOST, default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="TCP port (GRPO_PORT, default 8000)")
    parser.add_argument("--models-dir", type=Path, help="folder of the model files (GRPO_MODELS_DIR, default models)")
    return {name: value for name, value in vars(parser.parse_args()).items() if value is not None}


def _refuse(reason: str) -> int:
    sys.stderr.write(f"grpo: {reason}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
