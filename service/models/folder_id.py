"""What tells one models folder from all others: a name that is drawn once, and kept in the folder."""

import logging
import re
import secrets
from pathlib import Path

from grpo_core.saving.model_file import write_atomic

logger = logging.getLogger("grpo.service")

_ID_FILE = ".folder-id"
_N_BYTES = 16
_ID = re.compile(rf"[0-9a-f]{{{2 * _N_BYTES}}}")


def read_folder_id(models_dir: Path) -> str:
    """Return the folder's name, 32 hexadecimal digits; the first call draws it.

    A folder that takes no file gets another name each time.
    """
    path = models_dir / _ID_FILE
    try:
        kept = path.read_text().strip() if path.is_file() else ""
        if _ID.fullmatch(kept):
            return kept
    except (OSError, ValueError):
        logger.warning("%s cannot be read, and is written anew", _ID_FILE)
    drawn = secrets.token_hex(_N_BYTES)
    try:
        write_atomic(path, f"{drawn}\n".encode())
    except OSError as error:
        logger.warning("%s cannot be written (%s): jobs will not be found again", _ID_FILE, error.strerror)
    return drawn
