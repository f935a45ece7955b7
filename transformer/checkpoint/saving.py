"""A save under way: written and read back in a thread, then sealed or removed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath

from transformer.checkpoint.arrays import Arrays, shapes_of
from transformer.checkpoint.folders import remove
from transformer.config import UserError
from transformer.files import seal, writing
from transformer.memory import ran_out, short
from transformer.phases import phase

# What `load`, inference and a resumed run look for.
NEEDED = {"progress": {"step", "vocab_size"}, "files": {"config.json"}, "items": {"params"}}
GOES_ON = "then run the same command again: it goes on from the last complete checkpoint"


def require_needed(given: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `ValueError` where a checkpoint would lack what readers need."""
    if lacking := [f"{name} in {where}" for where, names in NEEDED.items() for name in names - given[where].keys()]:
        raise ValueError(f"a checkpoint can't be read without {', '.join(sorted(lacking))}; give save these, too")


class Saving:
    """A save under way. A thread waits until its arrays are written and reads them back; then it seals the checkpoint,
    or removes it, once that is decided."""

    def __init__(
        self,
        path: epath.Path,
        arrays: Arrays,
        files: Mapping[str, bytes],
        *,
        good: bool,
        check: Callable[[], None],
        then: Callable[[bool], None],
    ):
        """`good`: whether it is certain that the checkpoint is good; `check`: called before it is sealed or removed;
        `then`: called with whether it is certain by then, after it is sealed."""
        self._path, self._arrays, self._files, self._check, self._then = path, arrays, files, check, then
        self._good, self._certain, self._decided = True, good, threading.Event()
        if good:
            self._decided.set()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._finish, name="checkpoint")

    def start(self, items: Mapping[str, Any]) -> None:
        """Start writing. Returns once the arrays are copied off the devices."""
        self._shapes = {k: shapes_of(tree) for k, tree in items.items()}
        with writing(self._path):
            self._arrays.save(self._path, items)
        self._thread.start()

    def confirm(self) -> None:
        """Let the checkpoint be sealed, as good."""
        if not self._decided.is_set():
            self._certain = True
            self._decided.set()

    def reject(self) -> None:
        """Let the checkpoint be removed, unless `confirm` came first."""
        if not self._decided.is_set():
            self._good = False
            self._decided.set()

    def join(self) -> None:
        """Wait until it is over. A checkpoint that nobody decided on is sealed."""
        self._decided.set()
        self._thread.join()

    def raise_failure(self) -> None:
        """Raise `UserError` if it failed."""
        if (failure := self._failure) is None:
            return
        self._check()  # where that is lost, it is the cause
        if isinstance(failure, UserError):
            raise failure
        folder = self._path.parent
        if ran_out(failure):
            raise short(failure, f"no checkpoint was saved in {folder}; {GOES_ON}") from failure
        raise UserError(
            f"saving a checkpoint under {folder} failed ({failure}); make room or mend the folder; {GOES_ON}"
        ) from failure

    def _finish(self) -> None:
        try:
            with phase(f"saving {self._path.name}"):
                self._arrays.wait()
                if jax.process_index():
                    return
                for file, content in self._files.items():
                    (self._path / file).write_bytes(content)
                self._read_back()
                self._decided.wait()
                self._check()
                if not self._good:
                    return remove(self._path)
                seal(self._path)
            self._then(self._certain)
        except BaseException as error:
            self._failure = error

    def _read_back(self) -> None:
        """Read what was saved, as a reader does. Raises `ValueError` where it is not what was given."""
        self._arrays.read_back(self._path, self._shapes)
        for file, content in self._files.items():
            if (self._path / file).read_bytes() != content:
                raise ValueError(f"{self._path / file} does not hold what was saved")
