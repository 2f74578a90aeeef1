"""Run the webhooks bench: `python bench/webhooks/run.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.webhooks.commands import main

main()
