"""Which examples are used for what: setting validation data aside, drawing some, and what identifies them all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from distil_jax.errors import UserError
from distil_jax.tasks.examples import Example
from distil_jax.tasks.kinds import TaskKind


def set_aside(
    examples: Sequence[Example], fraction: float, seed: int, kind: TaskKind[Any]
) -> tuple[list[Example], list[Example]]:
    """Splits off a share of the examples, in proportion for every class; the rest comes first in the result.

    A pure function of its arguments. Questions about one context stay together, since they would give away each other's
    answers. Every class keeps at least one example in the rest. Both parts keep the order.

    Raises:
        UserError: there are too few examples to split.
    """
    total = max(1, round(len(examples) * fraction))
    chance = random.Random(f"validation {seed}")
    if kind.together is None:
        chosen = _in_proportion([kind.stratum(example) for example in examples], total, chance)
    else:
        chosen = _whole_contexts([kind.together(example) for example in examples], total, chance)
    if not chosen or len(chosen) == len(examples):
        raise UserError(
            f"task: {len(examples)} training examples are too few to set some aside for validation; "
            "give validation data with task.validation"
        )
    rest = [example for i, example in enumerate(examples) if i not in chosen]
    return rest, [examples[i] for i in sorted(chosen)]


def _in_proportion(labels: Sequence[int | None], total: int, chance: random.Random) -> set[int]:
    groups: dict[int | None, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        groups[label].append(i)
    wanted = {label: total * len(group) / len(labels) for label, group in groups.items()}
    counts = {label: min(int(share), len(groups[label]) - 1) for label, share in wanted.items()}
    # Largest remainder: what rounding down left over goes where it was largest; equal ones in the order of the data.
    for label in sorted(wanted, key=lambda label: int(wanted[label]) - wanted[label]):
        if sum(counts.values()) < total and counts[label] < len(groups[label]) - 1:
            counts[label] += 1
    chosen: set[int] = set()
    for label, group in groups.items():
        chosen.update(chance.sample(group, counts[label]))
    return chosen


def _whole_contexts(all_contexts: Sequence[str], total: int, chance: random.Random) -> set[int]:
    groups: dict[str, list[int]] = defaultdict(list)
    for i, context in enumerate(all_contexts):
        groups[context].append(i)
    contexts = list(groups)
    chance.shuffle(contexts)
    chosen: set[int] = set()
    for context in contexts[:-1]:
        if len(chosen) < total:
            chosen.update(groups[context])
    return chosen


def draw(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """`count` examples at random, in their order; those drawn for a smaller count are among them."""
    order = list(range(len(examples)))
    random.Random(f"examples {seed}").shuffle(order)
    return [examples[i] for i in sorted(order[:count])]


def digest(
    labels: Sequence[str],
    train: Sequence[Example],
    validation: Mapping[str, Sequence[Example]],
    test: Mapping[str, Sequence[Example]],
) -> str:
    """SHA-256 over the classes and all examples in order: the same data, read on any machine, has the same."""
    found = hashlib.sha256(json.dumps(list(labels)).encode())
    parts = [("train", "", train), *(("validation", name, part) for name, part in validation.items())]
    for role, name, part in [*parts, *(("test", name, part) for name, part in test.items())]:
        found.update(json.dumps([role, name, len(part)]).encode())
        for example in part:
            fields = [getattr(example, name) for name in example.__dataclass_fields__]
            found.update(json.dumps(fields, default=dataclasses.astuple).encode())
            found.update(b"\n")
    return found.hexdigest()
