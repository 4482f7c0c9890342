"""tomllib, or before Python 3.11 the tomli that pytest needs."""

import sys

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["tomllib"]
