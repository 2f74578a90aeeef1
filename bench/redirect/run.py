"""Run the redirect bench: `python bench/redirect/run.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.redirect.commands import main

main()
