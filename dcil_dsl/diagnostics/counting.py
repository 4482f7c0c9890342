"""Counts of things in messages: "1 step", "5,005 steps"; "none of the 52 layers"."""


def count(number: int, noun: str, many: str | None = None) -> str:
    """(1, "step") -> "1 step", (5005, "step") -> "5,005 steps"; `many` where it takes no s."""
    return f"{number:,} {noun if number == 1 else many or f'{noun}s'}"


def none_of(number: int, noun: str) -> str:
    """(52, "layer") -> "none of the 52 layers", (1, "layer") -> "not even the one layer"."""
    return f"not even the one {noun}" if number == 1 else f"none of the {count(number, noun)}"
