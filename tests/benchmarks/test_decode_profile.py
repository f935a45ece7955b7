"""benchmarks/decode_profile.py: a trace shared out by hand-made spans, and a real one of a toy."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def profile():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        spec = importlib.util.spec_from_file_location("decode_profile", ROOT / "benchmarks/decode_profile.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def test_of_what_runs_at_once_the_last_that_began_has_the_time(profile) -> None:
    second = 1_000_000_000
    spans = [
        *[(0, 10, "program"), (0, 4, "a"), (5, 9, "loop"), (6, 7, "b")],
        *[(8, 12, "c"), (11, 14, "d"), (20, 21, "a"), (20, 22, "program")],
    ]
    found = profile.shared_out(profile.Span(a * second, b * second, part) for a, b, part in spans)
    # 4-5 the program's, 5-6 and 7-8 the loop's, 8-11 c's (the loop and the program end meanwhile), 14-20 nobody's.
    assert found == {"a": 5, "program": 2, "loop": 2, "b": 1, "c": 3, "d": 3}


@pytest.mark.parametrize(
    "module, path, opcode, part",
    [
        (
            "jit_proceed",
            "jit(proceed)/while/body/decode/self_attention/attend/div",
            "fusion",
            "attention over the cache",
        ),
        (
            "jit_proceed",
            "jit(proceed)/while/body/decode/self_attention/write_cache/dynamic_update_slice",
            "fusion",
            "writing the cache",
        ),
        ("jit_proceed", "jit(proceed)/while/body/decode/cross_attention/XD,DE->XE/dot_general", "dot", "products of"),
        ("jit_proceed", "jit(proceed)/while/body/choose/top_k", "custom-call", "choice of beams"),
        ("jit_proceed", "jit(proceed)/while", "while", "between operations"),
        ("jit_proceed", "", "copy", "masks, embedding, residuals, copies"),
        ("jit_begin", "jit(begin)/encode/self_attention/attend/div", "fusion", "encoder"),
    ],
)
def test_what_an_operation_is_for(profile, module: str, path: str, opcode: str, part: str) -> None:
    assert profile.part_of(module, path, opcode).startswith(part)


def test_names_in_what_xla_writes_down(profile, tmp_path: Path) -> None:
    (tmp_path / "module_0036.jit_f.cpu_after_optimizations.txt").write_text(
        "HloModule jit_f\n\n%region (a: f32[]) -> f32[] {\n"
        '  ROOT %add.2 = f32[2,3]{1,0} fusion(%a, %b), kind=kLoop, metadata={op_name="jit(f)/norm/add" source_line=3}\n'
        "  %while.3 = (s32[], /*index=1*/f32[4]{0}) while(%tuple.1), condition=%c, body=%d\n}\n"
    )
    assert profile.instructions(tmp_path, 36) == {"add.2": ("jit(f)/norm/add", "fusion"), "while.3": ("", "while")}
    assert profile.instructions(tmp_path, 37) == {}


@pytest.mark.slow
def test_a_toy_taken_apart(profile, environment) -> None:
    program = [sys.executable, ROOT / "benchmarks/decode_profile.py", "--quick", "--batch", "4", "--length", "40"]
    done = subprocess.run([*program, "--json"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    for dtype in profile.DTYPES:
        of_dtype = {row["part"]: row for row in rows if row["dtype"] == dtype}
        # What reads off the hypotheses is too short to be seen each time.
        assert set(of_dtype) | {profile.OTHERS} == set(profile.ORDER), dtype
        assert sum(row["share"] for row in of_dtype.values()) == pytest.approx(1, abs=0.01)
        assert all(row["ms_a_step"] >= 0 for row in of_dtype.values())


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--workdir", "nowhere"], "no model of benchmarks/decode.py there; run that first"),
        (["--workdir", "nowhere", "--model.d_ff=8"], "--model.d_ff=8: not an option here, or not beside --workdir"),
        (["--workdir", "nowhere", "--quick"], "--quick: not an option here, or not beside --workdir"),
        (["--train.steps=5"], "--train.steps=5: not an option"),
        (["--model.heads=7"], "model.heads"),
    ],
)
def test_mistakes_are_told_in_one_line(environment, arguments: list[str], told: str) -> None:
    program = [sys.executable, ROOT / "benchmarks/decode_profile.py", *arguments]
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert told in done.stderr
