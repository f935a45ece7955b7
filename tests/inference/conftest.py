"""Compile the programs of the engine fast, as `quick.jit` does: here they run only a few times, on tiny shapes."""

import inspect

import pytest
from quick import jit

from transformer.inference import engine, scorer, text_scorer


@pytest.fixture(scope="session", autouse=True)
def compiled_quickly():
    with pytest.MonkeyPatch.context() as patch:
        programs = [(engine, name) for name in ("begin", "proceed", "rearrange", "read_again")]
        for module, name in (*programs, (scorer, "forced"), (text_scorer, "predicted")):
            program = inspect.unwrap(getattr(module, name))
            # Their keyword-only arguments are static.
            static = [p.name for p in inspect.signature(program).parameters.values() if p.kind == p.KEYWORD_ONLY]
            donated = {"donate_argnames": "beams"} if name == "proceed" else {}
            patch.setattr(module, name, jit(program, static_argnames=static, **donated))
        yield
