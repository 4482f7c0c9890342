"""Lets the tests of extras import the helpers of the tests of plans and of methods."""

import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / "methods"), str(TESTS / "plan")]
