"""The emulated GPU finds what a GPU would refuse or leave to chance, and nothing else."""

import ctypes
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from emulator.device import STREAM, Gpu
from emulator.kernel import Kernel, UnknownInstructionError
from emulator.memory import AccessError, Global, Traffic
from emulator.values import decode, encode
from torch import Tensor

HEAD = """
.version 8.5
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry k(
	.param .u64 .ptr .global .align 1 k_param_0,
	.param .u64 .ptr .global .align 1 k_param_1
)
.reqntid 64
{
	.reg .pred 	%p<9>;
	.reg .b16 	%rs<9>;
	.reg .b32 	%r<20>;
	.reg .b64 	%rd<20>;
	ld.param.b64 	%rd1, [k_param_0];
	ld.param.b64 	%rd2, [k_param_1];
	mov.u32 	%r1, %tid.x;
	mul.wide.u32 	%rd3, %r1, 4;
	add.s64 	%rd4, %rd1, %rd3;
	add.s64 	%rd5, %rd2, %rd3;
	shl.b32 	%r2, %r1, 2;
	xor.b32 	%r3, %r2, 128;
"""  # threads of the other warp are at %r3
READ = "ld.global.b32 {%r4}, [%rd4];"
WRITE = "st.global.b32 [%rd5], {%r4};"


def run(body: str, *, count: int = 64, threads: int = 64, grid: int = 1) -> list[int]:
    """What is written where whole numbers from 0 on are read."""
    gpu = Gpu(80)
    given, made = torch.arange(count, dtype=torch.int32), torch.full((count,), -1).int()
    addresses = [gpu.put(given), gpu.put(made)]
    allocations = dict.fromkeys(addresses, 4 * count)
    Kernel(HEAD + body + "\n\tret;\n}\n", "k").launch(
        (grid, 1, 1), threads, 1024, addresses, Global(allocations)
    )
    return [int(x) for x in gpu.get(addresses[1], made)]


def exchange(between: str) -> str:
    """Threads hand numbers to those of the other warp."""
    return f"{READ} st.shared.b32 [%r2], %r4; {between} ld.shared.b32 %r4, [%r3]; {WRITE}"


def test_a_barrier_orders_what_warps_hand_to_each_other() -> None:
    """And what a thread wrote itself needs none."""
    assert run(exchange("bar.sync 0;")) == [*range(32, 64), *range(32)]
    assert run(exchange("bar.sync 0;").replace("%r3]", "%r2]")) == list(range(64))
    assert run(exchange("").replace("[%r3]", "[%r2]")) == list(range(64))


@pytest.mark.parametrize("between", ["", "bar.warp.sync -1;"])
def test_without_one_it_is_a_fault(between: str) -> None:
    """Lanes go in step here, so that the outcome alone would not show it."""
    with pytest.raises(AccessError, match="reads what another writes"):
        run(exchange(between))


def test_reads_before_writes_need_a_barrier_as_well() -> None:
    """Whoever reads may be late."""
    late = "bar.sync 0; ld.shared.b32 %r4, [%r3]; {} st.shared.b32 [%r2], %r4;"
    run(late.format("bar.sync 0;"))
    with pytest.raises(AccessError, match="writes what another reads"):
        run(late.format(""))


def test_threads_that_write_the_same_are_no_fault() -> None:
    """Copies of one value: Triton has several threads hold it."""
    one_place = "mov.b32 %r5, {}; st.shared.b32 [global_smem], %r5;"
    run(one_place.format("7") + one_place.format("7"))
    with pytest.raises(AccessError, match="different values"):
        run(one_place.format("7") + one_place.format("8"))


def test_blocks_are_ordered_by_nothing() -> None:
    """Not even by a barrier."""
    body = f"{READ} mov.u32 %r5, %ctaid.x; add.s32 %r4, %r4, %r5; bar.sync 0; {WRITE}"
    assert run(body) == list(range(64))
    with pytest.raises(AccessError, match="nothing orders"):
        run(body, grid=2)
    with pytest.raises(AccessError, match="nothing orders"):
        run(f"{READ} {WRITE} bar.sync 0; ld.global.b32 {{%r4}}, [%rd5];", grid=2)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("ld.global.b32 {%r4}, [%rd4 + 4];", "byte 256 of an allocation of 256"),
        ("ld.global.b32 {%r4}, [%rd4 + -4];", "allocation"),
        ("ld.global.v2.b32 {%r4, %r5}, [%rd4];", "no multiple"),
        ("ld.shared.b32 %r4, [%r2+1000];", "of 1024 of shared memory"),
        ("ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r2];", "no multiple"),
    ],
)
def test_bounds_and_alignment(body: str, message: str) -> None:
    """A GPU would stop, or read what belongs to somebody else."""
    with pytest.raises(AccessError, match=message) as fault:
        run(body)
    assert fault.value.__notes__ == [f"at: {body.rstrip(';')}"]


def test_the_upper_half_of_a_product_divides() -> None:
    """By 5: times 52429, two bits more than the upper half of 32."""
    fifth = "mul.hi.u16 %rs2, %rs1, -13107; shr.u16 %rs3, %rs2, 2; cvt.u32.u16 %r4, %rs3;"
    assert run(f"cvt.u16.u32 %rs1, %r1; {fifth} {WRITE}") == [t // 5 for t in range(64)]


def test_traffic_is_counted_in_sectors() -> None:
    """Two warps, a number each: next to each other, one for eight sectors, and all the same."""
    gpu = Gpu(80)
    wide, made = torch.arange(64 * 64).int(), torch.zeros(64).int()
    addresses = [gpu.put(wide), gpu.put(made)]
    apart = "mul.wide.u32 %rd6, %r1, 256; add.s64 %rd7, %rd1, %rd6; ld.global.b32 {%r5}, [%rd7];"
    same = "ld.global.b32 {%r6}, [%rd1];"
    found = []
    for body in (READ, apart, same):
        traffic = Traffic()
        memory = Global(gpu.allocations(), traffic=traffic)
        Kernel(HEAD + body + "\n\tret;\n}\n", "k").launch((1, 1, 1), 64, 0, addresses, memory)
        found.append((traffic.asked, traffic.moved))

    assert found == [(256, 256), (256, 64 * 32), (2 * 4, 2 * 32)]


def test_a_guard_leaves_threads_out() -> None:
    """Of an access that would be out of bounds, too."""
    guarded = "setp.lt.u32 %p1, %r1, 40; mov.u32 %r4, 9; @{}%p1 ld.global.b32 {{%r4}}, [%rd4];"
    assert run(guarded.format("") + WRITE) == [*range(40), *[9] * 24]
    assert run(guarded.format("!") + WRITE) == [*[9] * 40, *range(40, 64)]
    with pytest.raises(AccessError):
        run(guarded.format("!") + WRITE, count=40)


def copied(wait: str) -> str:
    """Copies of 4 bytes that arrive some time."""
    return (
        "cp.async.ca.shared.global [ %r2 + 0 ], [ %rd4 + 0 ], 0x4; cp.async.commit_group;"
        "cp.async.ca.shared.global [ %r2 + 256 ], [ %rd4 + 0 ], 0x4; cp.async.commit_group;"
        f"{wait} bar.sync 0; ld.shared.b32 %r4, [%r3]; {WRITE}"
    )


def test_a_copy_is_there_once_it_was_waited_for() -> None:
    """The first of two, when at most one may be pending."""
    for most in (0, 1):
        assert run(copied(f"cp.async.wait_group {most};"))[:3] == [32, 33, 34]
    for wait in ("", "cp.async.wait_group 2;"):
        assert run(copied(wait))[:3] == [-1, -1, -1]  # what shared memory starts with


def test_blocks_go_their_own_ways() -> None:
    """A loop whose length is the number of the block."""
    body = """
	mov.u32 	%r5, %ctaid.x;
	mov.u32 	%r6, 0;
	mul.wide.u32 	%rd6, %r5, 256;
	add.s64 	%rd5, %rd5, %rd6;
$L__BB0_1:
	setp.ge.u32 	%p1, %r6, %r5;
	@%p1 bra 	$L__BB0_2;
	add.s32 	%r6, %r6, 1;
	bra.uni 	$L__BB0_1;
$L__BB0_2:
	mov.u32 	%r4, %r6;
	st.global.b32 	[%rd5], {%r4};
"""
    assert run(body, count=256, grid=4) == [x for x in range(4) for _ in range(64)]


def test_threads_wait_for_those_that_do_more() -> None:
    """What the others do leaves their registers and memory alone."""
    more = f"mov.u32 %r4, 9; {READ} st.shared.b32 [%r2], %r4;"
    body = f"mov.u32 %r4, 7; setp.lt.u32 %p1, %r1, 40; @%p1 bra $L__BB0_2; MORE $L__BB0_2: {WRITE}"
    assert run(body.replace("MORE", more)) == [*[7] * 40, *range(40, 64)]
    with pytest.raises(AssertionError, match="a barrier that some threads do not come to"):
        run(body.replace("MORE", "bar.sync 0;"))


def test_threads_that_part_otherwise_are_not_known() -> None:
    """Triton makes no loop whose threads leave it apart; what it meant would be a guess."""
    with pytest.raises(AssertionError, match="threads that others never meet again"):
        run("$L__BB0_2: setp.lt.u32 %p1, %r1, 40; @%p1 bra $L__BB0_2;")


@pytest.mark.parametrize(
    "body",
    [
        "atom.global.add.u32 %r4, [%rd5], 1;",
        "mul.hi.s64 %rd6, %rd4, %rd4;",
        "mad.hi.s32 %r4, %r1, %r1, %r1;",
        "min.NaN.f32 %r4, %r1, %r1;",
        "add.sat.s32 %r4, %r1, %r1;",
    ],
)
def test_what_is_not_known_is_said(body: str) -> None:
    """Nothing is skipped, be it a suffix."""
    with pytest.raises(
        UnknownInstructionError, match=body.split(" ", maxsplit=1)[0].replace(".", r"\.")
    ):
        run(body)


@pytest.mark.parametrize(("kind", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision_is_rounded_as_pytorch_does(kind: str, dtype: torch.dtype) -> None:
    """To the nearest, ties to even; subnormals, infinities and NaN included."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, generator=generator) * 10.0 ** torch.randint(-9, 6, (4000,))
    x = torch.cat([x, torch.tensor([0.0, -0.0, 1e-45, 3e38, torch.inf, torch.nan])])
    wanted = x.to(dtype)
    with np.errstate(over="ignore"):
        bits = encode(kind, x.numpy())

    assert np.array_equal(decode(kind, bits), wanted.float().numpy(), equal_nan=True)
    exact = ~wanted.isnan()
    assert np.array_equal(bits[exact], wanted.view(torch.int16).numpy().view(np.uint16)[exact])


def test_the_driver_holds_a_launch_to_what_it_allows() -> None:
    """Shared memory above 48 KiB has to be asked for; a captured launch runs later."""
    gpu = Gpu(80)
    given, made = torch.arange(64).int(), torch.zeros(64).int()
    addresses = [gpu.put(given), gpu.put(made)]
    _, module = gpu.cuModuleLoadData((HEAD + READ + WRITE + "ret;\n}\n").encode())
    _, function = gpu.cuModuleGetFunction(module, b"k")

    def launch(shared: int) -> Tensor:
        kinds: Sequence[type] = (ctypes.c_void_p, ctypes.c_void_p)
        gpu.cuLaunchKernel(function, 1, 1, 1, 64, 1, 1, shared, STREAM, (addresses, kinds), 0)
        return gpu.get(addresses[1], made)

    with pytest.raises(AssertionError, match="more shared memory"):
        launch(50_000)
    gpu.cuStreamBeginCapture(STREAM, "thread")
    assert not launch(0).any()
    _, graph = gpu.cuStreamEndCapture(STREAM)
    gpu.cuGraphLaunch(graph, STREAM)
    assert torch.equal(gpu.get(addresses[1], made), given)
