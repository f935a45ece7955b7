"""benchmarks/scaling.py: its tables of made-up rows, and why a row is missing. Nothing is compiled here."""

import importlib.util
import itertools
import math
from pathlib import Path

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("scaling", ROOT / "benchmarks/scaling.py")
scaling = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scaling)


def row(**update) -> dict:
    seconds = {"arithmetic": 0.004, "memory": 0.002, "links": 0.001}
    sent = [{"kind": "all-reduce", "sent": 3 * 2**20}, {"kind": "all-gather", "sent": 2**20}]
    one = {"memory_gib": 2.5, "limit_gib": 16.0, "fits": True, "seconds": seconds, "bound": 0.004, "collectives": sent}
    return {
        "batch": {"rows": 96, "compiled_rows": 128, "micro_batches": 1},
        "update": one | update,
        "tokens_per_s": 5e6,
        "days": 0.5,
        "warnings": ["an all-gather"],
    }


def test_each_case_once_and_each_mesh_over_all_its_chips() -> None:
    found = list(scaling.cases())
    assert len(set(found)) == len(found)
    for case in found:
        assert math.prod(map(int, case.mesh.split(","))) == case.chips
        assert math.prod(map(int, scaling.TOPOLOGIES[case.kind][case.chips].split("x"))) == case.chips


def test_all_rows_of_a_table_have_all_its_cells() -> None:
    small = {"memory_gib": 23.5, "limit_gib": 16.0, "fits": False}
    found = {
        scaling.Case("strong", "big", "v5e", 64, "32,1,2"): row(),
        scaling.Case("strong", "big", "v5e", 1, "1,1,1"): row() | {"update": small, "warnings": []},
        scaling.Case("strong", "big", "v5e", 8, "8,1,1"): {"error": "no libtpu"},
        scaling.Case("meshes", "big", "v5e", 64, "64,1,1"): row(),
        scaling.Case("weak", "base", "v5p", 512, "512,1,1"): row(),
        scaling.Case("decoding", "base", "v5e", 1, "1,1,1"): {"error": "no libtpu"},
        scaling.Case("decoding", "big", "v5e", 1, "1,1,1"): {
            "encoding": {"bound": 0.001},
            "decoding": row()["update"] | {"pieces_per_s": 1234.0},
        },
    }
    told = list(scaling.tables(found))
    for full, lines in itertools.groupby(told, key=lambda line: line.startswith("|")):
        assert not full or len({line.count("|") for line in lines}) == 1
    # Other meshes stand beside the one of strong scaling.
    assert sum(line.startswith("| 64 v5e | 32, 1, 2 | 128 (25%) | 2.5 of 16 | 4.00 ms |") for line in told) == 2
    assert any(
        "all-reduce 3 MiB, all-gather 1 MiB | 4.00 ms | 7.00 ms | 5,000,000 | 12.00 h |" in line for line in told
    )
    assert any("| 1 v5e | 1, 1, 1 | 128 (25%) | 23.5 of 16 (does not fit) |" in line for line in told)
    assert any("| 8 v5e | 8, 1, 1 | not compiled: no libtpu |" in line for line in told)
    assert "- 64 v5e, mesh 32,1,2: an all-gather" in told
    assert any(line.endswith("| 1,234 |") for line in told)


def test_why_a_command_failed() -> None:
    noise = "E0000 00:00:1 common_lib.cc:906] INVALID_ARGUMENT\n=== Source Location Trace: ===\n"
    assert scaling.reason(f"error: the mesh does not fit\n{noise}", 2) == "the mesh does not fit"
    trace = "Traceback (most recent call last):\n  File x\njax.errors.JaxRuntimeError: INTERNAL: why\n---\nJAX says\n"
    assert scaling.reason(noise + trace, 1) == "jax.errors.JaxRuntimeError: INTERNAL: why"
    assert scaling.reason(noise, -9) == "exit code -9"
