from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from transformer.config import Config, UserError
from transformer.tools.hlo import Collective, Hlo
from transformer.tools.plan import Estimate, TooBig, _values, estimate, lines, warnings
from transformer.tools.topologies import CHIPS, topology_mesh

HLO = """HloModule jit_step, entry_computation_layout={()->f32[]}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(f32[] %a, f32[] %b)
}

%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %ar = f32[8,16]{1,0:T(8,128)} all-reduce(f32[8,16]{1,0} %x), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  %inner = (s32[]) while((s32[]) %t), condition=%c, body=%deeper, backend_config={"known_trip_count":{"n":"3"}}
}

%products (a: f32[6,10]) -> f32[6,4] {
  %a = f32[6,10]{1,0} parameter(0)
  %b = f32[10,4]{1,0} parameter(1)
  ROOT %d = f32[6,4]{1,0} dot(f32[6,10]{1,0} %a, f32[10,4]{1,0} %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%deeper (p: (s32[])) -> (s32[]) {
  %f = f32[6,4]{1,0} fusion(%u, %v), kind=kOutput, calls=%products
  %cp = bf16[10]{0} collective-permute(bf16[10]{0} %y), source_target_pairs={{0,1},{1,0}}
}

ENTRY %main (p0: f32[8,16]) -> f32[8,16] {
  %w = (s32[], f32[8,16]) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"8"}}
  %ag = (bf16[500,64]{1,0}, bf16[1000,64]{1,0}) all-gather-start(%v), replica_groups={{0,1},{2,3}}, dimensions={0}
  %agd = bf16[1000,64]{1,0} all-gather-done((bf16[500,64]{1,0}, bf16[1000,64]{1,0}) %ag)
  %rs = f32[4]{0} reduce-scatter(f32[32]{0} %z), replica_groups=[1,8]<=[8], to_apply=%add
  %cps = (f32[7]{0}, f32[7]{0}, u32[], u32[]) collective-permute-start(f32[7]{0} %q), source_target_pairs={{0,1}}
  %all = (f32[3]{0}, f32[5]{0}) all-reduce-start(f32[3]{0} %q, f32[5]{0} %r), replica_groups={}, to_apply=%add
  %k = bf16[2,512,64]{2,1,0} parameter(1)
  %conv = bf16[2,128,64]{2,1,0} convolution(%x, %k), window={size=2 stride=1 lhs_dilate=2}, dim_labels=0bf_0io->0bf
  %kk = bf16[2,512,64]{2,1,0} parameter(2)
  %sum = bf16[1,128,64]{2,1,0} convolution(%x, %kk), window={size=2}, dim_labels=0bf_0io->0bf
  %two = (f32[6]{0}, f32[6]{0}) all-reduce(f32[6]{0} %q, f32[6]{0} %r), replica_groups=[4,2]<=[8], to_apply=%add
}
"""


def test_collectives_are_counted_as_often_as_they_run() -> None:
    found = {(one.kind, one.shape): one for one in Hlo(HLO, 8).collectives()}
    assert found["all-reduce", "f32[8,16]"] == Collective("all-reduce", "f32[8,16]", 4, 8, 8 * 8 * 16 * 4 * 2 * 3 / 4)
    assert found["collective-permute", "bf16[10]"].times == 24
    gathered = found["all-gather", "bf16[1000,64]"]
    assert (gathered.group, gathered.times, gathered.sent) == (2, 1, 1000 * 64 * 2 / 2)
    assert found["reduce-scatter", "f32[4]"].sent == 4 * 4 * 7
    assert found["all-reduce", "2 x f32[6]"].sent == 2 * 6 * 4 * 2 / 2
    assert found["collective-permute", "f32[7]"].sent == 7 * 4
    assert found["all-reduce", "f32[3] f32[5]"].sent == 8 * 4 * 2 * 7 / 8  # no groups named: all eight
    assert len(found) == 7
    assert Hlo(HLO, 8).collectives()[0] == gathered  # the most traffic first


def test_products_are_counted_as_often_as_they_run() -> None:
    in_loops = 8 * 3 * 2 * 6 * 10 * 4
    # One convolution with a batch of two matrices, one that sums over both.
    convolutions = 2 * (2 * 128 * 64) * 512 + 2 * (128 * 64) * 512 * 2
    assert Hlo(HLO, 8).flops() == in_loops + convolutions


SLICES = """HloModule jit_step

%one_row (a: f32[8,100], i: s32[]) -> f32[1,100] {
  %a = f32[8,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %s = f32[1,100]{1,0} dynamic-slice(f32[8,100]{1,0} %a, s32[] %i, s32[] %i), dynamic_slice_sizes={1,100}
}

%put (a: f32[8,100], row: f32[1,100], i: s32[]) -> f32[8,100] {
  %to = f32[8,100]{1,0} parameter(0)
  %row = f32[1,100]{1,0} parameter(1)
  %j = s32[] parameter(2)
  ROOT %u = f32[8,100]{1,0} dynamic-update-slice(f32[8,100]{1,0} %to, f32[1,100]{1,0} %row, s32[] %j, s32[] %j)
}

%keys_and_values (a: f32[8,100], b: f32[8,100], row: f32[1,100], i: s32[]) -> (f32[8,100], f32[8,100]) {
  %ka = f32[8,100]{1,0} parameter(0)
  %va = f32[8,100]{1,0} parameter(1)
  %new = f32[1,100]{1,0} parameter(2)
  %at = s32[] parameter(3)
  %k = f32[8,100]{1,0} dynamic-update-slice(f32[8,100]{1,0} %ka, f32[1,100]{1,0} %new, s32[] %at, s32[] %at)
  %same = f32[8,100]{1,0} bitcast(f32[8,100]{1,0} %va)
  %v = f32[8,100]{1,0} dynamic-update-slice(f32[8,100]{1,0} %same, f32[1,100]{1,0} %new, s32[] %at, s32[] %at)
  ROOT %both = (f32[8,100]{1,0}, f32[8,100]{1,0}) tuple(f32[8,100]{1,0} %k, f32[8,100]{1,0} %v)
}

%fresh (row: f32[1,100], i: s32[]) -> f32[8,100] {
  %one = f32[1,100]{1,0} parameter(0)
  %where = s32[] parameter(1)
  %zeros = f32[8,100]{1,0} broadcast(f32[] %zero), dimensions={}
  ROOT %z = f32[8,100]{1,0} dynamic-update-slice(f32[8,100]{1,0} %zeros, f32[1,100]{1,0} %one, %where, %where)
}

%turn (p: (f32[8,100], s32[])) -> (f32[8,100], s32[]) {
  %x = f32[8,100]{1,0} get-tuple-element(%p), index=0
  %n = s32[] get-tuple-element(%p), index=1
  %r = f32[1,100]{1,0} fusion(f32[8,100]{1,0} %x, s32[] %n), kind=kLoop, calls=%one_row
  %near = f32[1,100]{1,0:T(8,128)S(1)} negate(f32[1,100]{1,0} %r)
  %w = f32[8,100]{1,0} fusion(f32[8,100]{1,0} %x, f32[1,100]{1,0:T(8,128)S(1)} %near, s32[] %n), calls=%put
}

ENTRY %main (p0: f32[8,100]) -> f32[8,100] {
  %p0 = f32[8,100]{1,0} parameter(0)
  %e = f32[8,100]{1,0} exponential(f32[8,100]{1,0} %p0)
  %l = (f32[8,100], s32[]) while(%t), condition=%c, body=%turn, backend_config={"known_trip_count":{"n":"5"}}
  %cs = (f32[8,100]{1,0:S(1)}, f32[8,100]{1,0}, u32[]{:S(2)}) copy-start(f32[8,100]{1,0} %e)
  %cd = f32[8,100]{1,0:S(1)} copy-done(%cs)
  %near = f32[1,100]{1,0:S(1)} parameter(1)
  %i = s32[]{:S(2)} parameter(2)
  %du = f32[8,100]{1,0} dynamic-update-slice(f32[8,100]{1,0} %e, f32[1,100]{1,0:S(1)} %near, s32[] %i, s32[] %i)
  %kv = (f32[8,100]{1,0}, f32[8,100]{1,0}) fusion(%e, %du, %near, %i), kind=kLoop, calls=%keys_and_values
  %f = f32[8,100]{1,0} fusion(f32[1,100]{1,0:S(1)} %near, s32[]{:S(2)} %i), kind=kLoop, calls=%fresh
  %ss = ((f32[8,100]{1,0}), f32[2,100]{1,0:S(1)}, s32[]{:S(2)}) slice-start(f32[8,100]{1,0} %e), slice={[0:2]}
}
"""


def test_bytes_to_and_from_memory() -> None:
    """Slices count with their size, arrays next to the cores not at all, loops as often as they run."""
    whole, row, number = 3200, 400, 4
    turn = (row + number + row) + row + (number + row)  # slice read and written; read once more; written in place
    in_place, made_anew = 1 * row + 2 * row, whole
    copied, sliced = whole, 2 * row
    assert Hlo(SLICES, 1).traffic() == 2 * whole + 5 * turn + copied + sliced + in_place + made_anew


ASYNC = """HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(f32[] %a, f32[] %b)
}

%begin (p: f32[10,64]) -> (f32[10,64], f32[20,64], u32[]) {
  %p = f32[10,64]{1,0} parameter(0)
  %ag = f32[20,64]{1,0} all-gather(%p), channel_id=5, replica_groups=[4,2]<=[8], dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
  ROOT %start = (f32[10,64]{1,0}, f32[20,64]{1,0}, u32[]) custom-call(%ag), custom_call_target="AsyncCollectiveStart"
}

%beside (own: f32[10,64], result: f32[20,64], flag: u32[], x: f32[8,64]) -> (f32[10,64], f32[20,64], f32[20,64], u32[], f32[8,64]) {
  %own = f32[10,64]{1,0} parameter(0)
  %result = f32[20,64]{1,0} parameter(1)
  %flag = u32[] parameter(2)
  %x = f32[8,64]{1,0} parameter(3)
  %twice = f32[8,64]{1,0} add(%x, %x)
  %ag2 = f32[20,64]{1,0} all-gather(%own), channel_id=5, replica_groups=[4,2]<=[8], dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"1"}}
  ROOT %all = (f32[10,64]{1,0}, f32[20,64]{1,0}, f32[20,64]{1,0}, u32[], f32[8,64]{1,0}) tuple(%own, %result, %ag2, %flag, /*index=4*/%twice)
}

%end (own: f32[10,64], result: f32[20,64], flag: u32[]) -> f32[20,64] {
  %own3 = f32[10,64]{1,0} parameter(0)
  %result3 = f32[20,64]{1,0} parameter(1)
  %flag3 = u32[] parameter(2)
  %ag3 = f32[20,64]{1,0} all-gather(%own3), channel_id=5, replica_groups=[4,2]<=[8], dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
  ROOT %done = f32[20,64]{1,0} custom-call(%own3, %result3, %ag3, %flag3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (input_0: f32[512,64], input_1: f32[64,512]) -> (f32[128,64], f32[64,128]) {
  %input_0 = f32[512,64]{1,0} parameter(0)
  %input_1 = f32[64,512]{1,0} parameter(1)
  %ar = (f32[512,64]{1,0}, f32[64,512]{1,0}) all-reduce(%input_0, %input_1), channel_id=1, replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add
  %first = f32[512,64]{1,0} get-tuple-element(%ar), index=0
  %second = f32[64,512]{1,0} get-tuple-element(%ar), index=1
  %i = u32[] partition-id()
  %s0 = f32[128,64]{1,0} dynamic-slice(%first, %i, %i), dynamic_slice_sizes={128,64}
  %s1 = f32[64,128]{1,0} dynamic-slice(%second, %i, %i), dynamic_slice_sizes={64,128}
  ROOT %parts = (f32[128,64]{1,0}, f32[64,128]{1,0}) tuple(%s0, %s1)
}

%called (c: f32[4]) -> f32[4] {
  %c = f32[4]{0} parameter(0)
  ROOT %sum4 = f32[4]{0} all-reduce(%c), channel_id=2, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
}

ENTRY %main (p0: f32[10,64]) -> f32[8,64] {
  %p0 = f32[10,64]{1,0} parameter(0)
  %x0 = f32[8,64]{1,0:S(1)} parameter(1)
  %g = (f32[10,64]{1,0}, f32[20,64]{1,0}, u32[]{:S(2)}) fusion(%p0), kind=kCustom, calls=%begin
  %own0 = f32[10,64]{1,0} get-tuple-element(%g), index=0
  %result0 = f32[20,64]{1,0} get-tuple-element(%g), index=1
  %flag0 = u32[]{:S(2)} get-tuple-element(%g), index=2
  %w = (f32[10,64]{1,0}, f32[20,64]{1,0}, f32[20,64]{1,0}, u32[]{:S(2)}, /*index=4*/f32[8,64]{1,0}) fusion(%own0, %result0, %flag0, /*index=3*/%x0), kind=kOutput, calls=%beside
  %own1 = f32[10,64]{1,0} get-tuple-element(%w), index=0
  %result1 = f32[20,64]{1,0} get-tuple-element(%w), index=2
  %flag1 = u32[]{:S(2)} get-tuple-element(%w), index=3
  %e = f32[20,64]{1,0} fusion(%own1, %result1, %flag1), kind=kCustom, calls=%end
  %grad = f32[512,64]{1,0:S(1)} parameter(2)
  %grad2 = f32[64,512]{1,0:S(1)} parameter(3)
  %rs = (f32[128,64]{1,0:S(1)}, f32[64,128]{1,0:S(1)}) fusion(%grad, %grad2), kind=kCustom, calls=%all-reduce-scatter.1
  %four = f32[4]{0:S(1)} parameter(4)
  %as = ((f32[4]{0:S(1)}), f32[4]{0:S(1)}, u32[]{:S(2)}) async-start(%four), calls=%called
  %au = ((f32[4]{0:S(1)}), f32[4]{0:S(1)}, u32[]{:S(2)}) async-update(%as), calls=%called
  %ad = f32[4]{0:S(1)} async-done(%au), calls=%called
  %m = f32[2]{0:S(1)} all-reduce(%near), channel_id=3, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, to_apply=%add
  %n = f32[3]{0:S(1)} all-reduce(%near), channel_id=4, replica_groups=mesh['a'=2,'b'=8], device_ids=([8,2]T(1,0)) {'a','b':(1)4}, to_apply=%add
}
"""  # noqa: E501


def test_collectives_as_tpus_overlap_and_fuse_them() -> None:
    """An overlapped collective counts once, in links and in memory. A sum of which each device keeps its part is a
    reduce-scatter."""
    program = Hlo(ASYNC, 16)
    found = {(one.kind, one.shape, one.group): one for one in program.collectives()}
    gathered = found["all-gather", "f32[20,64]", 2]
    assert (gathered.times, gathered.sent) == (1, 20 * 64 * 4 / 2)
    assert found["reduce-scatter", "f32[128,64] f32[64,128]", 4].sent == 2 * 128 * 64 * 4 * 3
    assert found["all-reduce", "f32[4]", 2].times == 1
    assert ("all-reduce", "f32[2]", 4) in found and ("all-reduce", "f32[3]", 8) in found
    assert len(found) == 5
    read, written, doubled, summed = 10 * 64 * 4, 20 * 64 * 4, 8 * 64 * 4, 2 * 4 * 4
    assert program.traffic() == read + written + doubled + summed


def test_a_bound_on_the_time() -> None:
    chip = CHIPS["v5e"]
    traffic = (Collective("all-reduce", "f32[4]", 2, 1, 50e9), Collective("all-gather", "f32[4]", 2, 1, 50e9))
    one = Estimate("", chip, 0, 197e12, 819e8, traffic)
    assert one.seconds == pytest.approx({"arithmetic": 1.0, "memory": 0.1, "links": 1.0})
    assert dataclasses.replace(one, flops=2 * 197e12).bound == pytest.approx(2.0)
    # With sides of eight, sixteen devices span both dimensions, so they use all links.
    wide = dataclasses.replace(one, chip=chip._replace(side=8), collectives=(traffic[0]._replace(group=16),))
    assert wide.seconds["links"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    "told",
    [
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 23.50G of "
        "15.75G hbm. Exceeded hbm capacity by 7.75G.",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (23.50G) exceeds "
        "available HBM (15.75G).",
    ],
)
def test_a_program_that_does_not_fit(told: str) -> None:
    """libtpu's messages at compile time."""

    def fail(message: str) -> None:
        raise jax.errors.JaxRuntimeError(message)

    found = estimate("update", partial(fail, told), CHIPS["v5e"], 8)
    assert found == TooBig("update", CHIPS["v5e"], int(23.5 * 2**30))
    result = {"topology": "v5e:2x4", "mesh": {"data": 8, "fsdp": 1, "tensor": 1}, "update": _values(found)}
    mesh = SimpleNamespace(shape=result["mesh"])
    result["warnings"] = list(warnings(found, 1.0, Config(), mesh))
    assert result["warnings"] == ["23.5 GiB do not fit the 16 GiB of a chip"]
    assert list(lines(result))[2:4] == ["update, on each device", "  memory      23.50 of 16 GiB: does not fit"]
    with pytest.raises(UserError, match=r"^update: does not compile for these devices \(INTERNAL: two lines\); "):
        estimate("update", partial(fail, "INTERNAL: two\nlines"), CHIPS["v5e"], 8)


@pytest.mark.parametrize(
    ("topology", "sizes", "told"),
    [
        ("v5e", (2, 1, 1), "--topology v5e: must be v4|v5e|v5p|v6e:AxB"),
        ("h100:8x8", (64, 1, 1), "--topology h100:8x8: must be"),
        ("v5e:4x4", (4, 2, 1), "--mesh 4,2,1 has 8 devices, v5e:4x4 16"),
        ("v6e:32x32", (1024, 1, 1), "--topology v6e:32x32: a pod of v6e has 256 chips, not 1,024"),
    ],
)
def test_a_topology_or_mesh_that_cannot_be(topology: str, sizes: tuple[int, ...], told: str) -> None:
    with pytest.raises(UserError) as error:
        topology_mesh(topology, sizes)
    assert str(error.value).startswith(told)


@pytest.fixture(scope="module")
def eight(environment) -> dict:
    script = Path(__file__).with_name("plan_on_eight_devices.py")
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_programs_of_a_mesh(eight: dict) -> None:
    """On eight virtual CPU devices; XLA partitions programs for them as for other devices."""
    for mesh in ("8x1x1", "2x4x1", "1x1x8"):
        assert 0.9 < eight[mesh]["flops"] / eight[mesh]["model_flops"] < 1.5, mesh
        assert eight[mesh]["collectives"], mesh
        assert not eight[mesh]["warnings"], mesh
    # With data alone gradients are summed; fsdp needs less memory.
    assert any(kind == "all-reduce" for kind, *_ in eight["8x1x1"]["collectives"])
    assert eight["2x4x1"]["memory"] < eight["8x1x1"]["memory"]


@pytest.mark.slow
@pytest.mark.parametrize(("length", "slots"), [(16, 16 * 4), (64, (48 + 16) * 4)])
def test_decoding_with_the_cache_of_the_last_stage(eight: dict, length: int, slots: int) -> None:
    """Counted by hand: two sentences of four beams on each device, whatever the training mesh."""
    found = eight[f"decoding {length}"]
    B, X, D, F, V = 2, 8, 64, 128, 512
    attention = 4 * X * D * (slots + length)  # self-attention and cross-attention
    assert found["flops"] == pytest.approx(2 * X * (6 * D * D + 2 * D * F + D * V) + attention, rel=0.01)
    encoder = 2 * B * length * (4 * D * D + 2 * D * F) + 4 * B * length * length * D
    assert found["encoding_flops"] == pytest.approx(encoder + 2 * B * length * 2 * D * D, rel=0.01)
    # 16 bits each: matrices, keys and values of hypotheses and sources.
    table, matrices, kv = V * D, 6 * D * D + 2 * D * F, 2 * B * D * (slots + length)
    assert found["state"] == pytest.approx(2 * (table + matrices + kv), rel=0.1)
    # Devices only exchange the number of unfinished sentences.
    assert found["sent"] < 64


@pytest.mark.slow
def test_a_plan_is_told(eight: dict) -> None:
    told = "\n".join(lines(eight["plan"]))
    assert "eight of these, mesh data 8, fsdp 1, tensor 1: compiled for it, not run on it" in told
    assert "batch of 4 rows of 256 source and 256 target positions" in told
    assert "padding: 8 rows are compiled, to divide evenly over the mesh, 50.0% of them empty; of the others 3%" in told
    assert not eight["plan"]["warnings"]  # not "computed on several": empty rows are arithmetic, too
    tokens = eight["plan"]["tokens_per_s"]
    assert tokens == pytest.approx(4 * 256 * 0.97 / eight["plan"]["update"]["bound"])
    assert f"{tokens:,.0f} target tokens/s at most, padding and empty rows left out" in told
    step, encoding = eight["plan"]["decoding"], eight["plan"]["encoding"]
    assert step["pieces_per_s"] == pytest.approx(8 * 32 * 64 / (encoding["bound"] + 64 * step["bound"]))
    assert f"{step['pieces_per_s']:,.0f} target pieces/s on all devices" in told


@pytest.mark.slow
@pytest.mark.parametrize(("name", "padding"), [("windows", 0), ("documents", 0.03), ("masked", 0.03)])
def test_a_language_model_is_planned(eight: dict, name: str, padding: float) -> None:
    plan = eight[name]
    batch = {"rows": 32, "text": 32, "micro_batches": 2, "compiled_rows": 32, "padding": padding}
    assert plan["batch"] == batch and "decoding" not in plan and not plan["warnings"]
    assert plan["update"]["name"] == "update 32x32"
    assert 0.9 < plan["update"]["flops"] / plan["update"]["model_flops"] < 1.5
    assert plan["tokens_per_s"] == pytest.approx(32 * 32 * (1 - padding) / plan["update"]["bound"])
    told = "\n".join(plan["lines"])
    assert "batch of 32 rows of 32 positions, in 2 micro-batches" in told and " tokens/s at most" in told
    assert "target" not in told


@pytest.mark.slow
def test_activations_stay_where_they_are(eight: dict) -> None:
    """Rows stay on their devices; parameters are gathered there, and logits are not summed over devices."""
    for mesh, tensor in {"8x1x1": 1, "2x4x1": 1, "2x2x2": 2, "2x4x1 learned": 1}.items():
        for kind, shapes, *_ in eight[mesh]["collectives"]:
            sizes = [tuple(map(int, found.split(","))) for found in re.findall(r"\[([\d,]+)\]", shapes)]
            # Only activations have a dimension of 24, or of a multiple of 24 (rows and positions flattened).
            assert kind == "all-reduce" or not any(n % 24 == 0 for size in sizes for n in size), (mesh, kind, shapes)
            assert not any(len(size) > 1 and size[-1] == 512 // tensor for size in sizes), (mesh, kind, shapes)


@pytest.mark.slow
def test_micro_batches_make_the_same_arithmetic(eight: dict) -> None:
    whole, cut = eight["8x1x1"], eight["in four"]
    assert cut["flops"] == pytest.approx(whole["flops"], rel=0.05)
    assert cut["traffic"] > 0.8 * whole["traffic"]


@pytest.mark.slow
def test_the_vocabularys_gradient_is_sent_once(eight: dict) -> None:
    """It is not summed over devices for each part of the loss, nor for inputs and logits separately."""
    sums = [one for one in eight["8x1x1"]["collectives"] if "f32[512,64]" in one[1]]
    assert [one[3] for one in sums] == [1]
    assert not re.search(r"\d x f32\[512,64\]", sums[0][1])


@pytest.mark.slow
def test_big_mistakes_show(eight: dict) -> None:
    for mesh in ("replicated", "replicated over fsdp"):
        assert any("times its share of parameters" in told for told in eight[mesh]["warnings"]), mesh
    assert any("times its share of the model's arithmetic" in told for told in eight["replicated"]["warnings"])
    assert any("all-gather of" in told and "vocabulary" in told for told in eight["gathered"]["warnings"])


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'jax[tpu]'"
)


@pytest.mark.slow
@needs_libtpu
def test_for_a_real_topology(environment) -> None:
    command = ("-m", "transformer", "plan", "--config", "configs/wmt14_en_de.py", "--json")
    small = ("--model.encoder_layers=1", "--model.decoder_layers=1")
    where = ("--topology", "v5e:2x4", "--mesh", "2,2,2")
    done = subprocess.run([sys.executable, *command, *where, *small], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert 0 < result["update"]["memory_gib"] < 16
    assert 0.9 < result["update"]["flops"] / result["update"]["model_flops"] < 1.6
    assert result["update"]["collectives"] and not result["warnings"]
    # Each matrix is gathered at most twice over fsdp: in the forward and in the backward pass.
    times = [one["times"] for one in result["update"]["collectives"] if one["kind"] == "all-gather"]
    assert times and sum(times) <= 2 * (4 * 3 + 2 * 2 + 1)
    assert any(one["kind"] == "reduce-scatter" for one in result["update"]["collectives"])
    assert result["decoding"]["pieces_per_s"] > 0 and len("\n".join(lines(result))) > 1000


@pytest.mark.slow
@needs_libtpu
def test_too_big_for_a_real_chip(environment) -> None:
    command = ("-m", "transformer", "plan", "--config", "configs/wmt14_en_de.py", "--only", "training")
    small = ("--model.encoder_layers=1", "--model.decoder_layers=1")
    where = ("--topology", "v5e:1x1", "--mesh", "1,1,1", "--train.batch_tokens", "1000000")
    done = subprocess.run([sys.executable, *command, *where, *small], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"memory +[\d.]+ of 16 GiB: does not fit", done.stdout)
    assert "GiB do not fit the 16 GiB of a chip" in done.stdout


@needs_libtpu
def test_topologies_of_every_kind(environment) -> None:
    script = "import sys; from transformer.tools.topologies import topology_mesh as m\n"
    script += "for t in sys.argv[1:]: print(m(t, (eval(t.partition(':')[2].replace('x', '*')), 1, 1))[0].size)"
    kinds = ("v4:1x1x1", "v4:2x2x1", "v5e:1x1", "v5e:1x2", "v5p:1x1x1", "v5p:2x2x1", "v6e:1x1", "v6e:16x16")
    done = subprocess.run([sys.executable, "-c", script, *kinds], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "4", "1", "2", "1", "4", "1", "256"], done.stderr[-3000:]
