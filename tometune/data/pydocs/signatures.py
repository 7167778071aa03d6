"""Parameters as text."""

import ast


def parameters(arguments: ast.arguments, is_method: bool) -> tuple[str, ...]:
    """Return the parameters as they are written, without annotations (which go from the tree), `self` and `cls`."""
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    positional = [*arguments.posonlyargs, *arguments.args]
    written = split(ast.unparse(arguments))
    if is_method and positional and positional[0].arg in ("self", "cls", "mcls"):
        written = written[1:]
    return tuple(part for part in written if part != "/")


def split(written: str) -> list[str]:
    """Split parameters at the commas outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in written:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        depth += (character in "([{") - (character in ")]}") if not quote else 0
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def constructor(node: ast.ClassDef) -> tuple[str, ...] | None:
    """Return the parameters of a class's own `__init__`, if it has one."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return parameters(item.args, is_method=True)
    return None
