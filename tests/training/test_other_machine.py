"""Bits are the same only on the same machine: a run that is resumed on another machine logs one line about it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from transformer.checkpoint import Checkpoints
from transformer.jobs import train
from transformer.training.start import machine_changes

TOLD = "resuming on another machine"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
@pytest.mark.slow
def test_cores_and_device_are_recorded_and_a_change_is_told(workdir: Path, tiny, caplog) -> None:
    mine = os.sched_getaffinity(0)
    if len(mine) < 2:
        pytest.skip("a single core")
    recorded = {"cores": len(mine), "device": "cpu"}
    assert Checkpoints(workdir).at(120).progress["machine"] == recorded

    def on(steps: int) -> list[str]:
        caplog.clear()
        caplog.set_level(logging.INFO, "transformer")
        train(["--config", tiny.config, "--workdir", str(workdir), "--train.steps", str(steps)])
        return [line for line in caplog.messages if line.startswith(TOLD)]

    assert on(121) == []
    try:
        os.sched_setaffinity(0, {min(mine)})
        (line,) = on(122)
        assert on(123) == []
    finally:
        os.sched_setaffinity(0, mine)
    assert line == (f"{TOLD} (cores: {len(mine)} before, 1 now): sums may be rounded differently from here on")
    assert Checkpoints(workdir).at(122).progress["machine"] == recorded | {"cores": 1}


def test_what_an_older_version_did_not_record_is_no_change() -> None:
    now = {"cores": 2, "device": "cpu"}
    for before in (None, {}, "two", 2, now, {**now, "more": 1}):
        assert machine_changes(before, now) == ""
    assert machine_changes({"cores": 8, "device": "NVIDIA H100"}, now) == (
        "cores: 8 before, 2 now, device: 'NVIDIA H100' before, 'cpu' now"
    )
