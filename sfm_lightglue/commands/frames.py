"""The command `frames`: photos from a video."""

from __future__ import annotations

from sfm_lightglue.commands.table import usage


def main(arguments: list[str]) -> int:
    """Writes the photos and prints how many there are."""
    options = {key: value for key, equals, value in (argument.partition("=") for argument in arguments[2:]) if equals}
    if len(arguments) < 2 or len(options) != len(arguments) - 2 or not options.keys() <= {"every"}:
        raise ValueError(f"usage: {usage('frames')}")
    from sfm_lightglue.images import video

    try:
        every = float(options.get("every", video.SECONDS))
    except ValueError as error:
        raise ValueError(f"every={options['every']} is not a number of seconds") from error
    names = video.extract_frames(arguments[0], arguments[1], every)
    print(f"{len(names)} photos in {arguments[1]}")
    return 0
