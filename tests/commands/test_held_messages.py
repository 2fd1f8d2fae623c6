"""Messages before the log of a run is open."""

from __future__ import annotations

import logging

import pytest

from sfm_lightglue.commands.jobs import held_messages

KERNELS, OTHER = logging.getLogger("sfm_lightglue.engine.kernels"), logging.getLogger("sfm_lightglue.other")


def test_warnings_and_what_the_kernels_say_are_kept_for_the_log() -> None:
    levels = logging.getLogger("sfm_lightglue").level, KERNELS.level
    with held_messages() as held:
        KERNELS.info("compiled")
        OTHER.info("detail")
        OTHER.warning("odd")
    assert [record.getMessage() for record in held] == ["compiled", "odd"]
    assert (logging.getLogger("sfm_lightglue").level, KERNELS.level) == levels


def test_they_are_printed_if_a_check_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="mistake"), held_messages():
        OTHER.warning("odd")
        raise ValueError("mistake")
    assert capsys.readouterr().err == "odd\n"
