"""``python -m llmproxy.cli``: the command where no console script is installed."""

from __future__ import annotations

import sys

from llmproxy.cli.main import main

sys.exit(main())
