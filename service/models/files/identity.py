"""The name that tells one models folder from all others: drawn once, and kept in the folder."""

import logging
import re
import secrets
from pathlib import Path

from grpo_core.saving.atomic_write import write_atomic

logger = logging.getLogger("grpo.service")

_ID_FILE = ".folder-id"
_N_BYTES = 16
_ID = re.compile(rf"[0-9a-f]{{{2 * _N_BYTES}}}")


def read_folder_id(models_dir: Path) -> str | None:
    """Return the folder's name, 32 hexadecimal digits; the first call draws it.

    None if it cannot be read or kept: another one would be drawn at the next start.
    """
    path = models_dir / _ID_FILE
    try:
        try:
            kept = path.read_bytes().decode(errors="replace").strip()
        except FileNotFoundError:
            kept = ""
        if _ID.fullmatch(kept):
            return kept
        drawn = secrets.token_hex(_N_BYTES)
        write_atomic(path, f"{drawn}\n".encode())
    except OSError as error:
        logger.warning("%s cannot be used (%s): no job goes on without this server", _ID_FILE, error.strerror)
        return None
    return drawn
