"""Lets the tests of extras import the helpers of the tests of the core."""

import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
FOLDERS = ("methods", "plan", "training", "masking", "compiler")
sys.path[:0] = [str(TESTS / folder) for folder in FOLDERS]
