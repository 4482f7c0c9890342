"""Where zeros pay: which layers of a plan gain on a target."""
