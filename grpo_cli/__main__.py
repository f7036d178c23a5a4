"""``python -m grpo_cli``."""

import sys

from grpo_cli import main

sys.exit(main())
