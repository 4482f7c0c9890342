"""`eval(num_epochs - 2)` of a SparseML recipe: arithmetic on the variables of the recipe.

In:   the scalars that stand outside of modifiers, by name; an expression.
Out:  a number, or the value of one variable; None for anything else.
Not:  nothing of Python is called: `+ - * /`, brackets, numbers and names of variables.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping

_EVAL = re.compile(r"eval\((.*)\)", re.DOTALL)
LONGEST = 200  # characters of an expression
MOST_NESTED = 20  # variables that are expressions of others


def evaluated(text: str, variables: Mapping[str, object], depth: int = 0) -> object:
    """The value of `eval(...)`; None where it is not one, or is not arithmetic."""
    found = _EVAL.fullmatch(text.strip())
    if found is None or len(text) > LONGEST or depth > MOST_NESTED:
        return None
    try:
        value = _value(ast.parse(found[1].strip(), mode="eval").body, variables, depth)
    except (ValueError, SyntaxError, TypeError, ArithmeticError, RecursionError, MemoryError):
        return None
    is_finite = not isinstance(value, float) or math.isfinite(value)
    return value if is_finite else None


def _value(node: ast.expr, variables: Mapping[str, object], depth: int) -> object:
    """Raises ValueError for what is not arithmetic."""
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.Name(id=name) if name in variables:
            held = variables[name]
            inner = evaluated(held, variables, depth + 1) if isinstance(held, str) else None
            if isinstance(held, str) and _EVAL.fullmatch(held.strip()) and inner is None:
                raise ValueError(name)
            return held if inner is None else inner
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand, variables, depth)
        case ast.BinOp(left=left, op=operator, right=right):
            one, other = (_number(side, variables, depth) for side in (left, right))
            match operator:
                case ast.Add():
                    return one + other
                case ast.Sub():
                    return one - other
                case ast.Mult():
                    return one * other
                case ast.Div():
                    return one / other
    raise ValueError("not arithmetic")


def _number(node: ast.expr, variables: Mapping[str, object], depth: int) -> float:
    value = _value(node, variables, depth)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("not a number")
    return float(value)
