"""Shared fixtures: a tiny corpus, one finished training run on it, and commands called in this process.

The corpus is artificial: each English word has one German word, in the same order.
"""

from __future__ import annotations

import builtins
import contextlib
import fnmatch
import gc
import io
import logging
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import pytest

WORDS = {
    **{"red": "rot", "blue": "blau", "green": "grün", "big": "groß", "small": "klein", "old": "alt", "new": "neu"},
    **{"cat": "Katze", "dog": "Hund", "bird": "Vogel", "house": "Haus", "tree": "Baum", "car": "Auto"},
    **{"sees": "sieht", "likes": "mag", "finds": "findet"},
}
CONFIG = """
from transformer.config import Config, DataConfig, DecodeConfig, ModelConfig, TrainConfig

folder = {folder!r}
config = Config(
    model=ModelConfig(encoder_layers=1, decoder_layers=1, d_model=32, d_ff=64, heads=2, dropout=0.1),
    data=DataConfig(
        source=(f"{{folder}}/train.en",),
        target=(f"{{folder}}/train.de",),
        dev_source=f"{{folder}}/dev.en",
        dev_target=f"{{folder}}/dev.de",
        test_source=f"{{folder}}/test.en",
        test_target=f"{{folder}}/test.de",
        vocab_size=400,
        max_length=16,
        length_buckets=2,
        workers=1,
    ),
    train=TrainConfig(
        steps=120,
        batch_tokens=512,
        accumulate=2,
        warmup_steps=20,
        peak_learning_rate=0.01,
        log_every=7,
        eval_every=40,
        checkpoint_every=25,
        keep_last=3,
    ),
    decode=DecodeConfig(beam_size=2, max_extra_length=5, max_source_length=30),
)
"""


# Compile fast instead of well: most programs run only a few times.
HURRIED = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def pytest_configure(config: pytest.Config) -> None:
    """Set XLA's flags before JAX starts in any process, but for `-m long`: those tests need good code.

    Not if this version of XLA lacks a flag, because then the program would end.
    """
    if "XLA_FLAGS" not in os.environ and config.option.markexpr != "long":
        os.environ["XLA_FLAGS"] = HURRIED
        probe = [sys.executable, "-c", "import jax; jax.devices()"]
        if subprocess.run(probe, capture_output=True).returncode:
            os.environ["XLA_FLAGS"] = ""


LONGEST = ("test_trained_model.py", "test_kills.py", "test_commands_run.py", "test_bad_checkpoints.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files whose slow tests take longest, so that no worker is left with them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a slow test if it is later than `SLOW_TESTS_UNTIL`, in seconds since 1970: .ci/run has a limit of time."""
    until = float(os.environ.get("SLOW_TESTS_UNTIL", "inf"))
    if item.get_closest_marker("slow") and time.time() > until:
        pytest.skip("the time for slow tests is over")


class Tiny(NamedTuple):
    """A folder with train, dev and test text and a config file."""

    folder: Path
    config: str
    """Path of the config file."""


class Done(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of all tests. The user's cache is not used."""
    folder, base = tmp_path_factory.mktemp("cache"), tmp_path_factory.getbasetemp()
    compiled = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    compiled.mkdir(exist_ok=True)
    (folder / "compiled").symlink_to(compiled)  # shared by all workers
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSFORMER_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Forget compiled programs after a test file when there are many: each one maps some memory, a process may have
    65,530 such maps on Linux, and without another one XLA crashes."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 15_000 and "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder, draw = tmp_path_factory.mktemp("tiny"), random.Random(0)
    for name, count in (("train", 400), ("dev", 20), ("test", 20)):
        sentences = [[draw.choice(list(WORDS)) for _ in range(draw.randint(3, 9))] for _ in range(count)]
        (folder / f"{name}.en").write_text("".join(" ".join(words) + "\n" for words in sentences))
        (folder / f"{name}.de").write_text("".join(" ".join(map(WORDS.get, words)) + "\n" for words in sentences))
    (folder / "config.py").write_text(CONFIG.format(folder=str(folder)))
    return Tiny(folder, str(folder / "config.py"))


@pytest.fixture(scope="session")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a finished run, evaluated at steps 40, 80 and 120. Don't write to it; use `workdir`."""
    from transformer.jobs import train

    folder = tmp_path_factory.mktemp("trained") / "run"
    train(["--config", tiny.config, "--workdir", str(folder)])
    return folder


@pytest.fixture
def workdir(trained: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, without the scores that other tests have stored there."""
    return Path(shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("scores.jsonl")))


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Iterator[Callable[..., Done]]:
    """`call("train.py", "--config", ...)`: run a command in this process; returns its exit code and output."""
    from transformer.__main__ import main
    from transformer.command_line import run
    from transformer.evaluation import evaluate
    from transformer.jobs import train

    log = logging.getLogger("transformer")
    before = log.handlers[:], log.propagate, log.level

    def call(program: str, *arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run({"train.py": train, "evaluate.py": evaluate, "transformer": main}[program])
        return Done(stop.value.code or 0, *capsys.readouterr())

    yield call
    log.handlers[:], log.propagate, log.level = before


@pytest.fixture(scope="session")
def environment(cache: Path) -> dict[str, str]:
    """Environment variables for commands in separate processes: project on the path, one CPU device, this cache."""
    environment = dict(os.environ)
    if environment.get("XLA_FLAGS") != HURRIED:  # other flags may ask for more devices
        environment.pop("XLA_FLAGS", None)
    return environment | {"PYTHONPATH": str(Path(__file__).parents[1]), "JAX_PLATFORMS": "cpu"}


@pytest.fixture
def full_after() -> Callable[[int], AbstractContextManager[None]]:
    """`with full_after(n)`: no file can grow beyond n bytes, as on a full disk; the last write is cut."""

    @contextlib.contextmanager
    def full_after(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return full_after


@pytest.fixture
def lying_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`lying_disk("*/tokens")`: flip a bit of each block that is written to files with such a path, without an error.
    Only files that Python's `open` has opened are affected."""

    def lying_disk(pattern: str) -> None:
        real = io.open

        def opened(file, mode="r", *args, **options):
            stream = real(file, mode, *args, **options)
            if mode == "wb" and fnmatch.fnmatch(str(file), pattern):
                write = stream.write

                def wrong(block) -> int:
                    content = bytearray(memoryview(block).cast("B"))
                    content[len(content) // 2] ^= 1
                    return write(content)

                stream.write = wrong
            return stream

        monkeypatch.setattr(io, "open", opened)
        monkeypatch.setattr(builtins, "open", opened)

    return lying_disk


@pytest.fixture
def report(record_property) -> Callable[[str], None]:
    """`report(line)`: print a line at the end of the test run, from any worker."""
    return lambda line: record_property("report", line)


def pytest_terminal_summary(terminalreporter) -> None:
    lines = [
        value
        for test in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
        if test.when == "call"
        for name, value in test.user_properties
        if name == "report"
    ]
    if lines:
        terminalreporter.section("measured")
    for line in lines:
        terminalreporter.write_line(line)
