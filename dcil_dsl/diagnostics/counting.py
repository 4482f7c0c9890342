"""Counts of things in messages: "1 step", "5,005 steps"; "none of the 52 layers"; "1-3, 7"."""


def count(number: int, noun: str, many: str | None = None) -> str:
    """(1, "step") -> "1 step", (5005, "step") -> "5,005 steps"; `many` where it takes no s."""
    return f"{number:,} {noun if number == 1 else many or f'{noun}s'}"


def none_of(number: int, noun: str) -> str:
    """(52, "layer") -> "none of the 52 layers", (1, "layer") -> "not even the one layer"."""
    return f"not even the one {noun}" if number == 1 else f"none of the {count(number, noun)}"


def ranges(numbers: list[int]) -> str:
    """[1, 2, 3, 7] -> "1-3, 7"; rising numbers."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if run[1:] else str(run[0]) for run in runs)
