"""Where the tests of methods find their neighbour."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
