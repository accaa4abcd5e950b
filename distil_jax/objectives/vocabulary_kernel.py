"""The losses over the vocabulary at some positions in one Pallas kernel for NVIDIA GPUs, by way of Triton.

XLA computes them in several passes over the logits, each of which reads and writes [C, V] arrays. Here one program a
position reads its logits three times, the second and third time from the cache if they are still there, and writes the
slopes (the idea of Liger Kernel, Hsu et al. 2024). The matmuls before and after stay XLA's. Tested in interpret mode
and lowered, never timed: no GPU was at hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from distil_jax.errors import UserError
from distil_jax.models.flash_attention import Device, this_device
from distil_jax.objectives.losses import weighted
from distil_jax.objectives.vocabulary_terms import LABEL_TERMS, TEACHER_TERMS, OutputLayer, Positions, products_of

_BLOCK = 2048  # logits that a program has before it; with 8 warps, 8 of each model a thread
_WARPS = 8
_SUMS_OF = {
    "kl": ("student", "teacher", "apart"),
    "logit_mse": ("squares",),
    **dict.fromkeys(LABEL_TERMS, ("label",)),
}  # what each term needs of the sums over the vocabulary


def require_device(device: Device) -> None:
    """`UserError` for a device that the kernel is not for."""
    if device.platform != "cuda" or device.capability < (8, 0):
        found = device.platform if device.platform != "cuda" else "one of {}.{}".format(*device.capability)
        raise UserError(
            "objective.vocabulary = 'kernel': needs an NVIDIA GPU of compute capability 8.0 or more, and this is "
            f"{found}; use 'fused'"
        )


def loss_and_dlogits(
    student: OutputLayer,
    teacher: OutputLayer | None,
    positions: Positions,
    coefficients: Mapping[str, Array],
    temperature: float,
    *,
    interpret: bool = False,
) -> tuple[dict[str, Array], Array]:
    """`vocabulary_terms.loss_and_dlogits`; `interpret` computes it without a GPU, for tests.

    Raises:
        UserError: the device is none that the kernel is for.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    if not interpret:
        require_device(this_device())
    names = tuple(positions.weights)
    work = _Work(names, temperature)
    layers = [layer for layer in (student, teacher)[: work.models] if layer is not None]
    tokens, vocabulary = len(student.hidden), len(student.table)
    targets = positions.targets if positions.targets is not None else jnp.zeros(tokens, jnp.int32)
    scales = [coefficients[name] * positions.weights[name] for name in names]
    inputs = [
        *map(products_of, layers),  # the kernel adds the bias, as XLA would add it in a pass of its own
        *(layer.bias.astype(jnp.float32) for layer in layers),
        targets,
        *scales,
    ]
    number = pl.BlockSpec((1,), lambda row: (row,))
    line = pl.BlockSpec((None, vocabulary), lambda row: (row, 0))
    bias = pl.BlockSpec((vocabulary,), lambda row: (0,))
    *values, slopes = pl.pallas_call(
        partial(_kernel, work),
        grid=(tokens,),
        in_specs=[*[line] * len(layers), *[bias] * len(layers), number, *[number] * len(names)],
        out_specs=[*[number] * len(names), line],
        out_shape=[
            *[jax.ShapeDtypeStruct((tokens,), jnp.float32)] * len(names),
            jax.ShapeDtypeStruct((tokens, vocabulary), student.hidden.dtype),
        ],
        compiler_params=triton.CompilerParams(num_warps=_WARPS),
        interpret=interpret,
        name="vocabulary_terms",
    )(*inputs)
    sums = {name: weighted(each, positions.weights[name]).sum for name, each in zip(names, values, strict=True)}
    return sums, slopes


@dataclasses.dataclass(frozen=True)
class _Work:
    """What one program does."""

    names: tuple[str, ...]
    temperature: float

    @property
    def models(self) -> int:
        """How many have logits in it: the student, and the teacher where a term compares with it."""
        return 1 + any(name in TEACHER_TERMS for name in self.names)


@dataclasses.dataclass(frozen=True)
class _Row:
    """The logits of one position, block by block."""

    products: tuple[Any, ...]
    biases: tuple[Any, ...]

    @property
    def length(self) -> int:
        """How many there are."""
        return self.biases[0].shape[0]

    @property
    def blocks(self) -> int:
        """In how many blocks, the last of which may reach beyond the row."""
        return -(-self.length // _BLOCK)

    def block(self, number: Any) -> tuple[Array, Array, tuple[Array, ...]]:
        """Places in the row [block], which of them exist, and the logits of each model there, 0 where none is."""
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import triton

        places = number * _BLOCK + jnp.arange(_BLOCK)
        exists = places < self.length
        here = pl.ds(number * _BLOCK, _BLOCK)
        both = zip(self.products, self.biases, strict=True)
        load = partial(triton.load, mask=exists, other=0.0)
        return places, exists, tuple(load(product.at[here]) + load(bias.at[here]) for product, bias in both)

    def at(self, place: Any) -> Array:
        """The student's logit at a place, ()."""
        return self.products[0][place] + self.biases[0][place]


def _kernel(work: _Work, *refs: Any) -> None:
    """References in the order of `inputs`, then those of the results."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    models = work.models
    rest: Iterator[Any] = iter(refs[2 * models :])
    row = _Row(refs[:models], refs[models : 2 * models])
    target = next(rest)[0]
    scales = {name: next(rest)[0] for name in work.names}
    peaks = _peaks(row)
    sums = _sums(work, row, peaks)
    for name in work.names:
        next(rest)[0] = _value(work, name, sums, peaks, row.at(target))
    slopes = next(rest)

    def write(number: Any, _: None) -> None:
        places, exists, logits = row.block(number)
        slope = jnp.zeros(_BLOCK, jnp.float32)
        for name in work.names:
            if name in LABEL_TERMS:
                exponentials = jnp.exp(logits[0] - peaks[0])
                hot = jnp.where(places == target, scales[name], 0.0)
                slope += scales[name] / sums["label"] * exponentials - hot
            elif name == "kl":
                ours, theirs = _softened(work, logits, peaks)
                scale = work.temperature * scales[name]
                slope += scale / sums["student"] * ours - scale / sums["teacher"] * theirs
            else:
                slope += 2.0 * scales[name] * (logits[0] - logits[1])
        here = pl.ds(number * _BLOCK, _BLOCK)
        triton.store(slopes.at[here], slope.astype(slopes.dtype), mask=exists)

    jax.lax.fori_loop(0, row.blocks, write, None)


def _softened(work: _Work, logits: tuple[Array, ...], peaks: tuple[Array, ...]) -> tuple[Array, Array]:
    student, teacher = (jnp.exp((one - peak) / work.temperature) for one, peak in zip(logits, peaks, strict=True))
    return student, teacher


def _peaks(row: _Row) -> tuple[Array, ...]:
    """The highest logit of each model."""

    def higher(number: Any, found: tuple[Array, ...]) -> tuple[Array, ...]:
        _, exists, logits = row.block(number)
        return tuple(jnp.maximum(old, jnp.where(exists, new, -jnp.inf)) for old, new in zip(found, logits, strict=True))

    lowest = tuple(jnp.full(_BLOCK, -jnp.inf, jnp.float32) for _ in row.products)
    return tuple(jnp.max(each) for each in jax.lax.fori_loop(0, row.blocks, higher, lowest))


def _sums(work: _Work, row: _Row, peaks: tuple[Array, ...]) -> dict[str, Array]:
    """Sums over the vocabulary, as in `_SUMS_OF`."""
    zeros = {name: jnp.zeros(_BLOCK, jnp.float32) for term in work.names for name in _SUMS_OF[term]}

    def summands(logits: tuple[Array, ...]) -> dict[str, Array]:
        found = {}
        if "label" in zeros:
            found["label"] = jnp.exp(logits[0] - peaks[0])
        if "kl" in work.names:
            found["student"], found["teacher"] = _softened(work, logits, peaks)
            found["apart"] = found["teacher"] * ((logits[1] - peaks[1]) - (logits[0] - peaks[0]))
        if "logit_mse" in work.names:
            found["squares"] = (logits[0] - logits[1]) ** 2
        return found

    def add(number: Any, total: dict[str, Array]) -> dict[str, Array]:
        _, exists, logits = row.block(number)
        return {name: total[name] + jnp.where(exists, each, 0.0) for name, each in summands(logits).items()}

    return {name: jnp.sum(each) for name, each in jax.lax.fori_loop(0, row.blocks, add, zeros).items()}


def _value(work: _Work, name: str, sums: Mapping[str, Array], peaks: tuple[Array, ...], chosen: Array) -> Array:
    """A term at this position, (); its formula as in `vocabulary_terms`."""
    if name in LABEL_TERMS:
        return jnp.log(sums["label"]) - (chosen - peaks[0])
    if name == "logit_mse":
        return sums["squares"]
    shift = sums["apart"] / (work.temperature * sums["teacher"])
    return work.temperature**2 * (shift + jnp.log(sums["student"] / sums["teacher"]))
