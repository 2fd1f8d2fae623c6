"""The command `datasets`: a list of all datasets, and their download."""

from __future__ import annotations

import json

from sfm_lightglue import datasets
from sfm_lightglue.commands.table import usage


def main(arguments: list[str]) -> int:
    """Prints the list, or fetches a dataset and prints its folder."""
    if arguments[:1] == ["fetch"] and len(arguments) in (2, 3):
        print(datasets.fetch_dataset(*arguments[1:]))
        return 0
    as_json = arguments[-1:] == ["--json"]
    arguments = arguments[: len(arguments) - as_json]
    if arguments not in ([], ["list"]):
        raise ValueError(f"usage: {usage('datasets')}; found {' '.join(arguments)!r}")
    if as_json:
        print(json.dumps({"datasets": [_facts(entry) for entry in datasets.list_datasets()]}))
        return 0
    for entry in datasets.list_datasets():
        size = f"{entry.size / 1e6:.1f} MB" if entry.size else "embedded" if entry.is_present else "size unknown"
        note = "" if entry.is_verified else ", downloads are not verified"
        where = entry.folder if entry.is_present else "not here"
        print(f"{entry.name:16}{entry.description}\n{'':16}{size}, licence: {entry.licence}{note}; {where}")
    return 0


def _facts(entry: datasets.DatasetEntry) -> dict[str, object]:
    return {
        "name": entry.name,
        "description": entry.description,
        "licence": entry.licence,
        "size": entry.size,
        "is_present": entry.is_present,
        "is_verified": entry.is_verified,
        "folder": str(entry.folder),
    }
