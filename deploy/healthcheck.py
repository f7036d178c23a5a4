"""Exit with 0 if the server in the same container answers, else with 1; it needs no curl in the image."""

import os
import sys
from http.client import HTTPConnection, HTTPException


def main() -> int:
    """Ask once; a 4xx counts as an answer, because the allowed hosts may leave out 127.0.0.1."""
    connection = HTTPConnection("127.0.0.1", int(os.environ.get("GRPO_PORT", "8000")), timeout=4)
    try:
        connection.request("GET", "/health/live")
        return int(connection.getresponse().status >= 500)
    except (OSError, HTTPException):
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
