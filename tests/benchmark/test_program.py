from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from distil_jax.benchmark.program import Collective, Program


def program(function: Any, *shapes: tuple[int, ...]) -> Program:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return Program(jax.jit(function).lower(*arguments).compile().as_text() or "")


def flops(found: Program) -> int:
    return sum(kernel.flops * kernel.times for kernel in found.kernels())


@pytest.mark.parametrize(
    ("equation", "left", "right", "products"),
    [
        ("ab,bc->ac", (64, 32), (32, 48), 64 * 32 * 48),
        ("nab,nbc->nac", (3, 64, 32), (3, 32, 48), 3 * 64 * 32 * 48),
        ("ab,ac->bc", (64, 32), (64, 48), 64 * 32 * 48),
    ],
)
def test_a_products_operations_are_counted(
    equation: str, left: tuple[int, ...], right: tuple[int, ...], products: int
) -> None:
    assert flops(program(lambda a, b: jnp.einsum(equation, a, b), left, right)) == 2 * products


def test_a_loop_counts_as_often_as_it_runs() -> None:
    def function(x: Any) -> Any:
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ c), None), x, None, length=7)[0]

    assert flops(program(function, (256, 256))) == 7 * 2 * 256**3


def test_an_elementwise_kernel_reads_and_writes_its_arrays_once() -> None:
    (kernel,) = program(lambda a, b: jnp.tanh(a) * b + 1, (512, 512), (512, 512)).kernels()
    assert (kernel.bytes, kernel.flops) == (3 * 4 * 512**2, 0)
    assert kernel.seconds(1e12, 1e9) == pytest.approx(kernel.bytes / 1e9)


def test_the_part_of_a_kernel_is_the_scope_that_it_comes_from() -> None:
    def function(x: Any) -> Any:
        with jax.named_scope("teacher"), jax.named_scope("attention"):
            x = jnp.tanh(x)
        with jax.named_scope("student"):
            return jax.lax.optimization_barrier(x) @ x

    parts = {kernel.part for kernel in program(jax.grad(lambda x: function(x).sum()), (128, 128)).kernels()}
    assert "student" in parts and parts <= {"student", "attention", "other"}


def test_sums_over_devices_are_found_with_their_bytes() -> None:
    devices = jax.devices()[:4]
    mesh = jax.sharding.Mesh(devices, ("data",))
    split, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    function = jax.shard_map(lambda x: jax.lax.psum(x, "data"), mesh=mesh, in_specs=split, out_specs=whole)
    found = program(function, (16, 32))
    assert found.collectives() == [Collective("all-reduce", 4 * 32 * 4, 1)]


# As TPUs have them: a batched product as a convolution over the batch, an array in fast memory, a part of an array.
TPU_TEXT = """HloModule jit_f, entry_computation_layout={()}

%fused (p0: f32[100,8,128], p1: s32[]) -> f32[8,128] {
  %p0 = f32[100,8,128]{2,1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,128}
  ROOT %bitcast = f32[8,128]{1,0:T(8,128)} bitcast(%slice)
}

%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p = (s32[], f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i2 = s32[] get-tuple-element(%p), index=0
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %y = f32[8,128]{1,0:T(8,128)} tanh(%x)
  ROOT %both = (s32[], f32[8,128]{1,0:T(8,128)}) tuple(%i2, %y)
}

%condition (q: (s32[], f32[8,128])) -> pred[] {
  %q = (s32[], f32[8,128]{1,0:T(8,128)}) parameter(0)
  %n = s32[] get-tuple-element(%q), index=0
  %bound = s32[]{:T(128)} constant(6)
  ROOT %less = pred[] compare(%n, %bound), direction=LT
}

ENTRY %main (a: bf16[4,64,32], b: bf16[4,32,16], c: f32[100,8,128], i: s32[]) -> f32[8,128] {
  %a = bf16[4,64,32]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[4,32,16]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %c = f32[100,8,128]{2,1,0:T(8,128)} parameter(2)
  %i = s32[]{:T(128)} parameter(3)
  %product = f32[4,64,16]{2,1,0:T(8,128)} convolution(%a, %b), window={size=4}, dim_labels=0bf_0io->0bf
  %start = (s32[], f32[8,128]{1,0:T(8,128)}) tuple(%i, %i)
  %ahead = ((f32[100,8,128]{2,1,0:T(8,128)}), f32[25,8,128]{2,1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%c), \
slice={[0:25], [0:8], [0:128]}
  %there = f32[25,8,128]{2,1,0:T(8,128)S(1)} slice-done(%ahead)
  %room = f32[100,8,128]{2,1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  %loop = (s32[], f32[8,128]{1,0:T(8,128)}) while(%start), condition=%condition, body=%body
  ROOT %part = f32[8,128]{1,0:T(8,128)} fusion(%c, %i), kind=kLoop, calls=%fused, \
metadata={op_name="jit(f)/teacher/slice"}
}
"""


def test_a_tpus_text_is_read() -> None:
    product, ahead, room, loop, part = Program(TPU_TEXT).kernels()
    assert ahead.bytes == 4 * 25 * 8 * 128, "a part is read in the background into fast memory, not the whole array"
    assert room.bytes == 0
    assert (loop.times, loop.bytes) == (6, 2 * 4 * 8 * 128)
    assert product.flops == 2 * 4 * 64 * 32 * 16
    assert product.bytes == 2 * 4 * 64 * 32 + 4 * 4 * 64 * 16  # the right side lies in fast memory
    assert part.bytes == 4 * 8 * 128 * 2 + 4 and part.part == "teacher"


# As GPUs have them: products of cuBLAS and attention of cuDNN are calls of a library.
GPU_TEXT = """HloModule jit_f

ENTRY %main (a: bf16[64,32], q: bf16[2,4,128,64]) -> bf16[2,4,128,64] {
  %a = bf16[64,32]{1,0} parameter(0)
  %q = bf16[2,4,128,64]{3,2,1,0} parameter(1)
  %gemm = (bf16[64,64]{1,0}, s8[1024]{0}) custom-call(%a, %a), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
  ROOT %mixed = bf16[2,4,128,64]{3,2,1,0} custom-call(%q, %q, %q), custom_call_target="__cudnn$fmhaSoftmax"
}
"""


def test_a_gpus_libraries_are_counted() -> None:
    gemm, attention = Program(GPU_TEXT).kernels()
    assert gemm.flops == 2 * 64 * 64 * 32 and gemm.target == "__cublas$gemm"
    assert attention.flops == 4 * (2 * 4 * 128 * 64) * 128
