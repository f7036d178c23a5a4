"""``python -m grpo_client``."""

import sys

from grpo_client.terminal.cli import main

sys.exit(main())
