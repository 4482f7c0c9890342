"""Time an exported network in several engines, on this machine, now."""
