"""The command `doctor`: what is installed on this machine."""

from __future__ import annotations


def main(arguments: list[str]) -> int:
    """Prints the report."""
    from sfm_lightglue.doctor import examine

    print(examine())
    return 0
