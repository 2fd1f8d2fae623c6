"""The command `kernels`: compiles the optional kernels."""

from __future__ import annotations

from sfm_lightglue.commands.table import usage


def main(arguments: list[str]) -> int:
    """Compiles the kernels, and prints their file and whether this CPU can use them. Raises: ValueError without a compiler."""
    if arguments:
        raise ValueError(f"usage: {usage('kernels')}; found {' '.join(arguments)!r}")
    from sfm_lightglue.engine.kernels import compile_kernels, load_kernels

    try:
        path = compile_kernels()
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    print(f"{path}\n{'used from now on' if load_kernels() else 'not used: this CPU lacks the instructions'}")
    return 0
