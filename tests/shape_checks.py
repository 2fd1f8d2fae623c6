"""The type checker of tests: arguments and results of the array code against their annotations, array shapes included."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float too, as for mypy
