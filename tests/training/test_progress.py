from __future__ import annotations

import io
import json
import logging
import math
import struct
import sys
import time
from pathlib import Path

import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st
from runs import scalars

from transformer.config import UserError
from transformer.training import progress, records
from transformer.training.progress import Display, Interval, clock
from transformer.training.records import Records


def lines_as_written(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def lines(folder: Path) -> list[dict]:
    """The entries of metrics.jsonl without their times."""
    entries = lines_as_written(folder)
    now = time.time()
    assert all(now - 600 < entry.pop("time") <= now + 0.001 for entry in entries)  # times are rounded
    return entries


@pytest.fixture
def folder(tmp_path: Path) -> epath.Path:
    return epath.Path(tmp_path)


# ---- Records --------------------------------------------------------------------------------------------------------


def test_entries_are_in_both_files_at_once(folder) -> None:
    records = Records(folder, 0)
    records.write(10, {"loss": 2.5, "epoch": 0})
    assert lines(folder) == [{"step": 10, "loss": 2.5, "epoch": 0}]
    assert scalars(folder) == [(10, "loss", 2.5), (10, "epoch", 0.0)]
    records.write(20, {"dev_bleu": 12.25})
    assert lines(folder)[1] == {"step": 20, "dev_bleu": 12.25}
    assert scalars(folder) == [(10, "loss", 2.5), (10, "epoch", 0.0), (20, "dev_bleu", 12.25)]
    records.close()


def test_tensorboard_reads_what_is_written(folder) -> None:
    """The framing and its checksums are those of tensorboardX."""
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar

    Records(folder, 0).write(10, {"loss": 2.5})
    (ours,) = (folder / "tensorboard").iterdir()
    theirs = EventsWriter(str(folder / "theirs"))
    theirs.write_event(Event(step=10, wall_time=lines_as_written(folder)[0]["time"], summary=scalar("loss", 2.5)))
    theirs.close()
    (other,) = folder.glob("theirs*")
    size = struct.unpack_from("<Q", other.read_bytes())[0] + 16  # of the first event, with the start time of the file
    assert ours.read_bytes()[size:] == other.read_bytes()[size:]


def test_entries_after_the_step_of_resuming_are_cut_off(folder) -> None:
    records = Records(folder, 0)
    for step in (10, 20, 20, 30):
        records.write(step, {"loss": float(step)})
    records.close()
    before = lines(folder)
    records = Records(folder, 20)
    assert lines(folder) == before[:3]
    records.write(30, {"loss": 31.0})
    records.close()
    assert [line["loss"] for line in lines(folder)] == [10, 20, 20, 31]
    assert scalars(folder) == [(10, "loss", 10), (20, "loss", 20), (20, "loss", 20), (30, "loss", 31)]
    Records(folder, 0).close()
    assert lines(folder) == scalars(folder) == []


@pytest.mark.parametrize("step", [0, 5])
def test_each_step_stands_once_where_a_run_was_killed_before_its_next_checkpoint(folder, step: int) -> None:
    for _ in range(3):
        records = Records(folder, step)  # the process ends without closing the file
        records.write(7, {"loss": 7.0})
        records.write(14, {"loss": 14.0})
    assert [line["step"] for line in lines(folder)] == [7, 14]
    assert scalars(folder) == [(7, "loss", 7.0), (14, "loss", 14.0)]


def test_without_its_log_tensorboard_is_told_from_where_it_begins_anew(folder) -> None:
    records = Records(folder, 0)
    records.write(7, {"loss": 7.0})
    (folder / "metrics.jsonl").unlink()
    records = Records(folder, 7)
    records.write(14, {"loss": 14.0})
    assert scalars(folder) == [(7, "loss", 7.0), (14, "loss", 14.0)]
    (_, newer) = sorted((folder / "tensorboard").iterdir())
    assert b"\x10\x08" in newer.read_bytes()  # step 8: from there on, the older file no longer counts


def test_a_log_that_is_damaged_within_is_told(folder, caplog) -> None:
    records = Records(folder, 0)
    for step in (10, 20, 30):
        records.write(step, {"loss": 1.0})
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().replace('{"step": 20', "\0\0\0") + '{"step"')
    Records(folder, 30)
    assert [line["step"] for line in lines(folder)] == [10, 30]
    assert caplog.messages == [f"{path}: 1 lines that are no entries are left out"]


BAD = [
    *('{"step": 1e999}', '{"step": 3.0}', '{"step": "3"}', '{"step": true}', '{"step": -1}', '{"step": null}', "{}"),
    *(
        '{"step": ' + "9" * 6_000 + "}",
        "[" * 200_000,
        "9" * 6_000,
        "null",
        "[]",
        "\0",
        '{"step": 1, "loss": ' + "9" * 400,
    ),
    *('{"step": 1, "loss": ' + "9" * 400 + "}", '{"step": 1, "time": "x", "loss": 1}', '{"step": 1, "\\ud800": 1}'),
]


@pytest.mark.parametrize("line", BAD)
def test_a_line_that_is_no_entry_is_left_out_and_counted(folder, caplog, line: str) -> None:
    Records(folder, 0).write(10, {"loss": 1.0})
    path = folder / "metrics.jsonl"
    path.write_text(f"{line}\n{path.read_text()}{line}\n")
    Records(folder, 10).write(20, {"loss": 2.0})
    assert [line["step"] for line in lines(folder)] == [10, 20]
    assert scalars(folder) == [(10, "loss", 1.0), (20, "loss", 2.0)]
    assert caplog.messages == [f"{path}: 2 lines that are no entries are left out"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["step", "time", "loss", "\ud800"]), inner),
)


@given(JSON.map(json.dumps) | st.text())
def test_any_line_is_an_entry_or_is_not(line: str) -> None:
    entry = records._entry(line)
    assert entry is None or (entry["step"] >= 0 and records._scalars(entry) is not None)


@pytest.mark.parametrize("harm", ["no text", "a folder"])
def test_a_log_that_cannot_be_read_is_told_in_one_line_and_left_alone(folder, harm: str) -> None:
    Records(folder, 0).write(10, {"loss": 1.0})
    path = folder / "metrics.jsonl"
    path.unlink()
    if harm == "no text":
        path.write_bytes(b"\xff\xfe{}\n")
    else:
        path.mkdir()
    before = scalars(folder)
    with pytest.raises(UserError, match=rf"^{path} cannot be read \(.*\); repair it, or move it away") as error:
        Records(folder, 10)
    assert "\n" not in str(error.value)
    assert path.is_dir() or path.read_bytes() == b"\xff\xfe{}\n"
    assert scalars(folder) == before


def test_nothing_is_written_through_a_link(folder, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("events.out.tfevents.1", "metrics.jsonl"):
        (outside / name).write_text("mine")
    run = epath.Path(tmp_path / "run")
    run.mkdir()
    metrics = [("metrics.jsonl", outside / name) for name in ("metrics.jsonl", "nowhere")]
    for name, target in (("tensorboard", outside), *metrics):
        (tmp_path / "run" / name).symlink_to(target)
        with pytest.raises(UserError, match=f"^{run}/{name} is a link, so writing there would write outside"):
            Records(run, 0)
        (tmp_path / "run" / name).unlink()
    assert {path.name: path.read_text() for path in outside.iterdir()} == {
        "events.out.tfevents.1": "mine",
        "metrics.jsonl": "mine",
    }


def test_a_flush_waits_for_the_disk(folder, monkeypatch) -> None:
    synced = []
    records = Records(folder, 0)
    monkeypatch.setattr("transformer.training.records.synced", synced.append)
    records.flush()  # nothing to wait for
    records.write(10, {"loss": 1.0})
    assert synced == []
    records.flush()
    assert synced == [folder / "metrics.jsonl"]


def test_what_is_no_number_is_for_the_log_only(folder) -> None:
    records = Records(folder, 0)
    records.write(10, {"dev_bleu": 12.25, "dev_bleu_signature": "nrefs:1"})
    records.close()
    assert lines(folder) == [{"step": 10, "dev_bleu": 12.25, "dev_bleu_signature": "nrefs:1"}]
    assert scalars(folder) == [(10, "dev_bleu", 12.25)]


def test_a_score_that_is_no_number_is_null(folder) -> None:
    """JSON has no NaN, and other readers refuse it. TensorBoard has NaN, and shows it."""
    Records(folder, 0).write(10, {"dev_loss": math.nan, "dev_perplexity": math.inf, "dev_bleu": 0.0})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    entry = json.loads((folder / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert [entry[f"dev_{name}"] for name in ("loss", "perplexity", "bleu")] == [None, None, 0.0]
    assert [(name, str(value)) for _, name, value in scalars(folder)][:2] == [
        ("dev_loss", "nan"),
        ("dev_perplexity", "inf"),
    ]
    Records(folder, 10)  # reads the file again
    assert lines(folder)[0]["dev_loss"] is None


def test_a_full_disk_is_told_in_one_line_and_once(folder, monkeypatch, full_after) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    records = Records(folder, 0)
    records.write(10, {"loss": 1.0})
    with full_after((folder / "metrics.jsonl").stat().length + 20):
        with pytest.raises(UserError, match=r"^\S+/metrics.jsonl cannot be written \(File too large\); make"):
            records.write(20, {"loss": 2.0})
        records.close()  # does not hide the error behind another one
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(UserError, match=r"^\S+/tensorboard cannot be written \(No space left"):
            Records(folder, 10)
    assert lines(folder) == [{"step": 10, "loss": 1.0}]


def test_a_tensorboard_that_cannot_be_written_is_told_at_once(folder) -> None:
    records = Records(folder, 0)
    (path,) = (folder / "tensorboard").iterdir()
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=f"^{path} cannot be written \\(Is a directory\\); make room or mend"):
        records.write(10, {"loss": 1.0})
    records.close()
    assert lines(folder) == [{"step": 10, "loss": 1.0}]


def test_where_the_tensorboard_files_of_a_bucket_go_is_told(folder, monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO, "transformer")
    monkeypatch.setattr("transformer.training.records.local", lambda path: False)
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: str(folder / "elsewhere"))
    records = Records(folder, 0)
    assert caplog.messages == [f"TensorBoard's files of {folder} are on this machine, in {folder}/elsewhere"]
    records.close()
    assert list((folder / "elsewhere").iterdir())


@pytest.mark.parametrize("cut", range(1, 24))
def test_what_a_kill_left_of_the_last_entry_does_no_harm(folder, cut: int) -> None:
    records = Records(folder, 0)
    records.write(10, {"loss": 1.0})
    records.write(20, {"loss": 2.0})
    records.close()
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    records = Records(folder, 20)
    records.write(21, {"loss": 3.0})
    records.close()
    # If one byte is missing, it is the newline: the entry itself is complete.
    assert [line["step"] for line in lines(folder)] == ([10, 20, 21] if cut == 1 else [10, 21])


def test_in_a_bucket_the_log_is_written_whole_at_each_flush(folder, monkeypatch) -> None:
    write = type(folder).open

    def no_append(path: epath.Path, mode: str = "r", **options):
        assert "a" not in mode
        return write(path, mode, **options)

    monkeypatch.setattr(type(folder), "open", no_append)
    monkeypatch.setattr(type(folder), "__str__", lambda self: "gs://bucket/run")
    records = Records(folder, 0)
    records.write(10, {"loss": 1.0})
    assert not (folder / "metrics.jsonl").exists()
    records.flush()
    records.write(20, {"loss": 2.0})
    records.close()
    monkeypatch.undo()
    assert [line["step"] for line in lines(folder)] == [10, 20]
    assert not (folder / "tensorboard").exists()


# ---- What is shown --------------------------------------------------------------------------------------------------

VALUES = {"loss": 2.3456, "learning_rate": 0.000123, "gradient_norm": 0.987, "tokens_per_second": 12345.6}


def test_without_a_terminal_there_are_plain_lines(caplog) -> None:
    caplog.set_level(logging.INFO, "transformer")
    display = Display(0, 100)
    display.advance(1)
    assert caplog.messages == []
    display.show(10, VALUES, 3723)
    display.close()
    assert caplog.messages == ["step 10  loss 2.346  lr 1.23e-04  gradient 0.99  12,346 tokens/s  1:02:03 left"]


def test_on_a_terminal_there_is_a_bar_with_the_same(monkeypatch, caplog) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    caplog.set_level(logging.INFO, "transformer")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    display = Display(40, 100)
    try:
        display.advance(41)
        display.show(50, VALUES, 60)
        display.advance(51)
    finally:
        display.close()
    shown = terminal.getvalue()
    assert "51/100" in shown
    for part in ("loss 2.346", "lr 1.23e-04", "gradient 0.99", "12,346 tokens/s"):
        assert part in shown
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599.6, "1:00:00"), (90061, "25:01:01")]
)
def test_clock(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


# ---- Means since the last entry -------------------------------------------------------------------------------------


def values(loss: float, nll: float, weight: float, norm: float, tokens: float) -> dict[str, float]:
    return {"loss": loss, "nll": nll, "weight": weight, "gradient_norm": norm, "tokens": tokens}


def test_an_interval_gives_means_and_a_rate(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    interval = Interval({})
    interval.add(values(4.0, 30.0, 10.0, 1.0, 50))
    now[0] += 2
    interval.add(values(2.0, 40.0, 20.0, 3.0, 70))
    assert interval.close() == {"loss": 3.0, "nll": 2.5, "gradient_norm": 2.0, "tokens_per_second": 60.0}
    # An evaluation in between does not count as training time.
    interval.add(values(1.0, 5.0, 5.0, 1.0, 50))
    now[0] += 1000
    interval.restart_clock()
    now[0] += 1
    interval.add(values(1.0, 5.0, 5.0, 1.0, 30))
    assert interval.close() == {"loss": 1.0, "nll": 1.0, "gradient_norm": 1.0, "tokens_per_second": 30.0}


def test_an_interval_goes_on_from_its_sums() -> None:
    whole, first = Interval({}), Interval({})
    some = [values(i + 0.1, 3.0 * i, 7.0, 0.3 * i, 10) for i in range(1, 6)]
    for each in some:
        whole.add(each)
    for each in some[:2]:
        first.add(each)
    second = Interval(json.loads(json.dumps(first.sums)))
    for each in some[2:]:
        second.add(each)
    assert {**second.close(), "tokens_per_second": 0} == {**whole.close(), "tokens_per_second": 0}
