"""The command `kernels`: compiles the kernels."""

from __future__ import annotations

from sfm_lightglue.commands.table import usage


def main(arguments: list[str]) -> int:
    """Compiles the kernels, and prints their file and whether this CPU can use them. Raises: ValueError if they cannot be
    compiled."""
    if arguments:
        raise ValueError(f"usage: {usage('kernels')}; found {' '.join(arguments)!r}")
    from sfm_lightglue.engine.kernels import SWITCH, compile_kernels, load_kernels

    try:
        path = compile_kernels()
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    except OSError as error:
        raise ValueError(f"the kernels could not be compiled, because their folder cannot be written: {error}") from error
    print(f"{path}\n{'used from now on' if load_kernels() else f'not used, because {SWITCH}=0 is set'}")
    return 0
