"""Run the messages bench: `python bench/messages/run.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.messages.commands import main

main()
