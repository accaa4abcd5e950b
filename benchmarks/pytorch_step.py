"""The distillation step in PyTorch, with transformers' modules: what `distil_jax` is measured against.

Losses as in DistilBERT (Sanh et al. 2019): temperature^2 KL on all real positions, masked-token cross entropy, cosine
of the last hidden states; AdamW, clipping by the global norm, dropout. Kinds of step:

- eager: full logits of both models;
- compile: the same with `torch.compile` around the losses, hence their gradients too;
- chunked: the vocabulary losses a few hundred positions at a time, their gradients computed on the way;
- compile-chunked: both.

Run as a program it is a worker of `step_comparison.py` and answers its requests.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distil_jax.benchmark.process import peak_memory, pin, serve

_CHUNK = 512  # positions whose logits the chunked loss holds
_NO_DECAY = ("bias", "LayerNorm.weight", "layer_norm.weight")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of both sides: weights of the losses, AdamW, and how often the gradient is clipped at which norm."""

    temperature: float = 2.0
    kl: float = 5.0
    mlm: float = 2.0
    cosine: float = 1.0
    learning_rate: float = 5e-4
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-6
    weight_decay: float = 0.0
    clip_norm: float = 5.0


def load_model(folder: Path, *, teacher: bool, dropout: bool, attention: str) -> Any:
    """A model that predicts tokens from a Hugging Face folder; a teacher never learns and never drops out."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    if not dropout:
        for name in ("dropout", "attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob"):
            if hasattr(config, name):
                setattr(config, name, 0.0)
    kind: Any = transformers.AutoModelForMaskedLM
    model = kind.from_pretrained(folder, config=config, attn_implementation=attention, dtype=torch.float32)
    return model.eval().requires_grad_(False) if teacher else model.train()


def body_and_head(model: Any) -> tuple[Callable[..., Tensor], Callable[[Tensor], Tensor], Any]:
    """(ids, mask -> hidden states, hidden states -> the decoder's input, the decoder) of either architecture."""
    if hasattr(model, "vocab_transform"):

        def transform(hidden: Tensor) -> Tensor:
            return model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))

        base, decoder = model.distilbert, model.vocab_projector
    else:
        base, transform, decoder = model.bert, model.cls.predictions.transform, model.cls.predictions.decoder

    def body(ids: Tensor, mask: Tensor) -> Tensor:
        return base(input_ids=ids, attention_mask=mask).last_hidden_state

    return body, transform, decoder


def vocabulary_losses(student: Tensor, teacher: Tensor, targets: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Means of KL and cross entropy: logits [N, V] of the real positions, targets [N] int64, -100 where not predicted.

    The KL is temperature^2 * KL(teacher || student) of the softmaxes at that temperature, summed over the vocabulary.
    """
    heat = settings.temperature
    ce = F.kl_div(
        F.log_softmax(student.float() / heat, dim=-1), F.softmax(teacher.float() / heat, dim=-1), reduction="batchmean"
    )
    return ce * heat**2, F.cross_entropy(student.float(), targets, ignore_index=-100)


class ChunkedVocabularyLoss(torch.autograd.Function):
    """The same two losses, weighted and added, from what the decoders multiply; no more than a chunk of logits is held.

    The gradients are computed on the way forward, as the logits are there then; backward only scales them.
    """

    @staticmethod
    def forward(
        context: Any,
        student: Tensor,
        weight: Tensor,
        bias: Tensor,
        teacher: Tensor,
        teacher_weight: Tensor,
        teacher_bias: Tensor,
        targets: Tensor,
        settings: Settings,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """student, teacher [N, H]; weights [V, H], biases [V]; targets [N] -> (weighted sum, KL, cross entropy)."""
        heat, count = settings.temperature, student.shape[0]
        predicted = (targets >= 0).sum().clamp(min=1)
        gradients = torch.empty_like(student), torch.zeros_like(weight), torch.zeros_like(bias)
        ce, mlm = student.new_zeros((), dtype=torch.float32), student.new_zeros((), dtype=torch.float32)
        compute = student.dtype
        table = weight.to(compute)
        for first in range(0, count, _CHUNK):
            here = slice(first, first + _CHUNK)
            logits = torch.addmm(bias.to(compute), student[here], table.t()).float()
            wanted = torch.addmm(
                teacher_bias.to(teacher.dtype), teacher[here], teacher_weight.to(teacher.dtype).t()
            ).float()
            log_p, log_q = F.log_softmax(wanted / heat, dim=-1), F.log_softmax(logits / heat, dim=-1)
            p = log_p.exp()
            ce += (p * (log_p - log_q)).sum() * heat**2
            # d/dS of temperature^2 KL is temperature (softmax(S / temperature) - softmax(T / temperature)).
            slope = (log_q.exp_() - p).mul_(settings.kl * heat / count)
            rows = (targets[here] >= 0).nonzero().squeeze(1)
            if len(rows):
                chosen, labels = F.log_softmax(logits[rows], dim=-1), targets[here][rows]
                mlm -= chosen.gather(1, labels[:, None]).sum()
                one = chosen.exp_()
                one[torch.arange(len(rows), device=one.device), labels] -= 1.0
                slope[rows] += one * (settings.mlm / predicted)
            slope = slope.to(compute)
            torch.mm(slope, table, out=gradients[0][here])
            gradients[1].addmm_(slope.t().to(weight.dtype), student[here].to(weight.dtype))
            gradients[2].add_(slope.sum(0).to(bias.dtype))
        context.save_for_backward(*gradients)
        ce, mlm = ce / count, mlm / predicted
        context.mark_non_differentiable(ce, mlm)
        return settings.kl * ce + settings.mlm * mlm, ce, mlm

    @staticmethod
    def backward(context: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients that the forward pass left."""
        student, weight, bias = context.saved_tensors
        return student * outer[0], weight * outer[0], bias * outer[0], None, None, None, None, None


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of 1 - cos over rows [N, H]."""
    ones = torch.ones(len(student), device=student.device)
    return F.cosine_embedding_loss(student.float(), teacher.float(), ones)


class Step:
    """A student, its teacher and the optimiser; `__call__` takes one step on the batch it was made with."""

    def __init__(
        self,
        folders: tuple[Path, Path],
        batch: Mapping[str, np.ndarray],
        kind: str,
        *,
        settings: Settings | None = None,
        dropout: bool = True,
        device: str = "cpu",
        attention: str = "sdpa",
        dtype: str = "float32",
    ) -> None:
        """Load both models.

        Args:
            folders: of student and teacher.
            batch: ids [B, L] after masking, mask [B, L] (1: real), targets [B, L] (-100: not predicted).
            kind: see the module's text.
            settings: of losses and optimiser.
            dropout: whether the student drops out.
            device: "cpu" or "cuda".
            attention: transformers' name of the implementation.
            dtype: "bfloat16" computes under autocast, and keeps the teacher in bfloat16.
        """
        self.settings, self.kind, self.device, self.half = settings or Settings(), kind, device, dtype == "bfloat16"
        self.student = load_model(folders[0], teacher=False, dropout=dropout, attention=attention).to(device)
        self.teacher = load_model(folders[1], teacher=True, dropout=False, attention=attention).to(device)
        if self.half:
            self.teacher = self.teacher.to(torch.bfloat16)
        self.ids, self.mask, targets = (
            torch.from_numpy(np.asarray(batch[name], np.int64)).to(device) for name in ("ids", "mask", "targets")
        )
        # Without padding nothing has to be gathered, which would copy arrays for nothing.
        self.real = None if bool((self.mask == 1).all()) else self.mask.reshape(-1).nonzero().squeeze(1)
        self.targets = self._rows(targets[..., None]).squeeze(1)
        self.optimizer = self._optimizer()
        chunked = kind.endswith("chunked")
        losses = self._chunked_losses if chunked else self._plain_losses
        self._losses = torch.compile(losses) if kind.startswith("compile") else losses

    def _optimizer(self) -> torch.optim.Optimizer:
        named = list(self.student.named_parameters())
        plain = [value for name, value in named if name.endswith(_NO_DECAY)]
        decayed = [value for name, value in named if not name.endswith(_NO_DECAY)]
        settings = self.settings
        groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        return torch.optim.AdamW(
            groups,
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            fused=True,
        )

    def _rows(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        return rows if self.real is None else rows[self.real]

    def _plain_losses(self) -> tuple[Tensor, dict[str, Tensor]]:
        settings = self.settings
        with torch.no_grad():
            wanted = self.teacher(input_ids=self.ids, attention_mask=self.mask, output_hidden_states=True)
        found = self.student(input_ids=self.ids, attention_mask=self.mask, output_hidden_states=True)
        ce, mlm = vocabulary_losses(self._rows(found.logits), self._rows(wanted.logits), self.targets, settings)
        cos = cosine_loss(self._rows(found.hidden_states[-1]), self._rows(wanted.hidden_states[-1]))
        total = settings.kl * ce + settings.mlm * mlm + settings.cosine * cos
        return total, {"kl": ce, "mlm": mlm, "cosine": cos}

    def _chunked_losses(self) -> tuple[Tensor, dict[str, Tensor]]:
        body, transform, decoder = body_and_head(self.student)
        teacher_body, teacher_transform, teacher_decoder = body_and_head(self.teacher)
        with torch.no_grad():
            teacher_hidden = self._rows(teacher_body(self.ids, self.mask))
            wanted = teacher_transform(teacher_hidden)
        hidden = self._rows(body(self.ids, self.mask))
        total, ce, mlm = _chunked(
            transform(hidden),
            decoder.weight,
            decoder.bias,
            wanted,
            teacher_decoder.weight,
            teacher_decoder.bias,
            self.targets,
            self.settings,
        )
        cos = cosine_loss(hidden, teacher_hidden)
        return total + self.settings.cosine * cos, {"kl": ce, "mlm": mlm, "cosine": cos}

    def losses(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted total, with its graph, and its terms."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            return self._losses()

    def gradients(self) -> tuple[dict[str, float], float]:
        """Compute losses and gradients -> ({"loss", "kl", "mlm", "cosine"}, norm of the gradient before clipping)."""
        self.optimizer.zero_grad(set_to_none=True)
        total, terms = self.losses()
        total.backward()
        # Added up in float64: in float32 PyTorch loses 2e-4 of the norm over the 23 million weights of the embeddings.
        squares = [p.grad.double().square().sum() for p in self.student.parameters() if p.grad is not None]
        norm = torch.stack(squares).sum().sqrt()
        return {"loss": float(total), **{name: float(value) for name, value in terms.items()}}, float(norm)

    def __call__(self) -> Tensor:
        """One whole step; returns the loss, possibly still being computed."""
        self.optimizer.zero_grad(set_to_none=True)
        total, _ = self.losses()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.settings.clip_norm, foreach=True)
        self.optimizer.step()
        return total.detach()

    def wait(self) -> None:
        """Wait until everything asked of the device is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()


# Compilers see a function with a graph of its own as one piece.
def _apply_chunked(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    found: Any = ChunkedVocabularyLoss.apply(*arguments)
    return found


_chunked: Any = torch.compiler.disable(_apply_chunked)


class Side:
    """The worker's state between requests."""

    def __init__(self) -> None:
        self._make: Callable[..., Step] | None = None
        self._step: Step | None = None
        self._device = "cpu"

    def open(self, **request: Any) -> dict[str, Any]:
        """Remember what to load, and set threads and cores."""
        pin(request["cores"])
        if request["cores"]:
            torch.set_num_threads(len(request["cores"]))
        self._device = request["device"]
        self._make = functools.partial(
            Step,
            (Path(request["student"]), Path(request["teacher"])),
            dict(np.load(request["batch"])),
            request["kind"],
            settings=Settings(**request["settings"]),
            device=self._device,
            attention=request["attention"],
        )
        self._dtype = request["dtype"]
        return {"torch": torch.__version__, "threads": torch.get_num_threads()}

    def losses(self, dtype: str) -> dict[str, Any]:
        """Losses and gradient norm without dropout; in float32 no product's precision is lowered."""
        assert self._make is not None
        torch.set_float32_matmul_precision("highest")
        terms, norm = self._make(dropout=False, dtype=dtype).gradients()
        return {**terms, "gradient_norm": norm}

    def warm_up(self) -> dict[str, Any]:
        """Two steps, the first of which compiles."""
        assert self._make is not None
        torch.set_float32_matmul_precision("high" if self._device == "cuda" else "highest")
        torch.manual_seed(0)
        start = time.perf_counter()
        self._step = self._make(dtype=self._dtype)
        for _ in range(2):
            loss = self._step()
        self._step.wait()
        return {"seconds": time.perf_counter() - start, "loss": float(loss)}

    def round(self, steps: int) -> dict[str, Any]:
        """Seconds a step."""
        assert self._step is not None
        start = time.perf_counter()
        for _ in range(steps):
            self._step()
        self._step.wait()
        return {"seconds": (time.perf_counter() - start) / steps}

    def memory(self) -> dict[str, Any]:
        """Bytes held at most."""
        return {"peak_bytes": torch.cuda.max_memory_allocated() if self._device == "cuda" else peak_memory()}


if __name__ == "__main__":
    side = Side()
    serve({name: getattr(side, name) for name in ("open", "losses", "warm_up", "round", "memory")})
