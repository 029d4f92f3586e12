"""Bytes of device memory that each role needs, derived from what PyTorch keeps; `docs/plan.md` has the derivation.

Per token, a decoder block with hidden width D, query width Q, key width K, inner width F and H heads keeps for its
backward pass, in numbers of the compute dtype (e bytes) unless said otherwise:

    two norms of the hidden state    each D float32 (the input), 1 float32, D
    inputs of q/k/v and of the MLP   2·D
    norms of heads (Qwen3)           Q + K float32, H + H_kv float32, Q + K
    attention                        Q + 2·K, its output Q, H float32, and Q as the input of the output layer
    gated MLP                        4·F

In float32 the norms' inputs are the hidden state itself, so nothing is kept twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from gopd.logprobs import CHUNK_BYTES
from gopd.plan.sizes import ModelSizes

Parts = dict[str, float]
"""What → bytes."""

MASTER = 4
"""Bytes of a trained weight, of its gradient and of each of AdamW's two moments: all float32."""


@dataclass(frozen=True, slots=True)
class Numerics:
    """Which numbers the learner computes in. `element`: bytes of one in products.

    `sharded`: weights lie in shards (FSDP2) and are gathered as `element` wide ones. Otherwise they are whole, float32,
    and a narrow `element` means autocast, which keeps narrow copies of weights and wide norms.
    """

    element: int
    ranks: int = 1
    sharded: bool = False
    offload: bool = False

    @property
    def autocast(self) -> bool:
        """Whether wide weights are made narrow on the way."""
        return not self.sharded and self.element < MASTER

    @property
    def gradient(self) -> int:
        """Bytes of a number of a weight's gradient as the backward pass makes it."""
        return self.element if self.sharded else MASTER


def _norm(width: int, rows: int, element: int) -> int:
    """Kept by one RMS norm: its float32 input, a float32 number per row, and the normalised values."""
    return 4 * width + 4 * rows + element * width


def block_bytes(model: ModelSizes, numerics: Numerics) -> int:
    """Kept per token by one decoder block for its backward pass.

    Under autocast the two norms stay wide, and each of the five layers that read them keeps a narrow copy of its own.
    """
    element, queries, keys = numerics.element, model.queries, model.keys
    wide, copies = (MASTER, 5) if numerics.autocast else (element, 2)
    kept = 2 * _norm(model.hidden, 1, wide) + copies * element * model.hidden
    if model.head_norms:
        kept += _norm(queries, model.heads, element) + _norm(keys, model.kv_heads, element)
    kept += element * (queries + 2 * keys) + 2 * element * queries + 4 * model.heads
    return kept + 4 * element * model.inner


def saved_bytes(model: ModelSizes, numerics: Numerics, *, checkpointing: bool) -> int:
    """Kept per token by the whole body until the backward pass; with checkpointing each block's input alone.

    Beside the blocks: the token's id, cosines and sines of its position, and the last norm.
    """
    wide = MASTER if numerics.autocast else numerics.element
    ends = 8 + 2 * wide * model.head_width + _norm(model.hidden, 1, wide)
    block = wide * model.hidden if checkpointing else block_bytes(model, numerics)
    return ends + model.layers * block


def update_memory(
    model: ModelSizes,
    numerics: Numerics,
    *,
    tokens: int,
    predicted: int,
    checkpointing: bool,
    targets: int = 0,
) -> Parts:
    """What a learner rank holds at the worst moment of an update, when gradients of earlier micro-batches are there.

    `tokens` are packed in a micro-batch, `predicted` of them are response tokens. `targets` models bring hidden states
    and heads of their own (estimators that look at the whole vocabulary). Three moments can be the worst: the loss, the
    backward pass of the last block, and the end, where the embeddings get their gradient.
    """
    shard = 0.0 if numerics.offload else model.parameters / numerics.ranks
    parts = {"weights": MASTER * shard, "gradients": MASTER * shard, "optimizer": 2 * MASTER * shard}
    head = model.vocabulary * model.hidden
    parts["gathered weights"] = _copies(model, numerics)
    parts["targets"] = targets * numerics.element * (head + predicted * model.hidden)
    saved = tokens * saved_bytes(model, numerics, checkpointing=checkpointing)
    head_gradient = numerics.gradient * head
    moments = [
        {"activations": saved, "at work": head_gradient + _loss_bytes(model, numerics, predicted, targets)},
        {
            "activations": saved + checkpointing * tokens * block_bytes(model, numerics),
            "at work": head_gradient + _backward_bytes(model, numerics, tokens),
        },
        {"activations": 0.0, "at work": _last_bytes(model, numerics, head_gradient)},
    ]
    return parts | max(moments, key=lambda moment: sum(moment.values()))


def _copies(model: ModelSizes, numerics: Numerics) -> float:
    """Weights beyond the shards: under FSDP2 the block at work, the next one, and all that belongs to no block; under
    autocast a narrow copy of every linear layer, and of the head.
    """
    if numerics.sharded:
        return numerics.element * (2.0 * model.block + model.root)
    return numerics.element * float(model.cost.body + model.cost.head) if numerics.autocast else 0.0


def _loss_bytes(model: ModelSizes, numerics: Numerics, predicted: int, targets: int) -> float:
    """Hidden states and their gradient, and the chunk: log-probs, probabilities, logits, each target's log-probs; where
    products are narrow, logits and gradient also as narrow arrays.
    """
    arrays = 3 + targets + (2 * numerics.element / MASTER if numerics.element < MASTER else 0)
    return 2.0 * numerics.element * predicted * model.hidden + arrays * _chunk_bytes(model, predicted)


def _chunk_bytes(model: ModelSizes, predicted: int) -> int:
    """One array of a chunk: what CHUNK_BYTES allow, at least one row of logits, at most all of them."""
    row = MASTER * model.vocabulary
    return row * min(predicted, max(1, CHUNK_BYTES // row))


def _backward_bytes(model: ModelSizes, numerics: Numerics, tokens: int) -> float:
    """The gated MLP's backward pass: gradients of the hidden state twice, and two inner arrays more than were kept;
    and gradients of weights: of one layer, or of the block as it is summed over ranks in float32.
    """
    flowing = numerics.element * tokens * (2.0 * model.hidden + 2.0 * model.inner)
    weight = numerics.gradient * model.hidden * model.inner
    return flowing + ((numerics.gradient + MASTER) * model.block if numerics.sharded else weight)


def _last_bytes(model: ModelSizes, numerics: Numerics, head_gradient: float) -> float:
    """Gradients of head and embeddings together where they are one; and their sum over ranks in float32."""
    own = head_gradient * (2 if model.tied else 1)
    return own + (MASTER * model.root if numerics.sharded else 0)


def forward_bytes(model: ModelSizes, element: int, tokens: int) -> float:
    """At work in a forward pass without gradient: the widest of attention and MLP, and the residual.

    Attention: the norm's input and output in float32, queries and keys before and after rotation. MLP: three inner
    arrays. Experts: every token's chosen ones at once, inner arrays and outputs.
    """
    attention = 8 * model.queries + element * 4 * (model.queries + model.keys)
    inner = element * 3 * model.inner
    if model.experts is not None:
        inner = element * model.experts.chosen * (4 * model.experts.width + 2 * model.hidden)
    return tokens * (float(max(attention, inner)) + (4 + 2 * element) * model.hidden)


def scoring_memory(models: list[ModelSizes], element: int, tokens: int, predicted: int) -> Parts:
    """What a scorer of a teacher and its reference holds; both hidden states are there when the heads are applied, and
    the chunk: logits, and each model's log-probs.
    """
    widest = max(models, key=lambda m: forward_bytes(m, element, tokens))
    hidden = sum(element * predicted * m.hidden for m in models)
    chunk = (1 + len(models)) * _chunk_bytes(widest, predicted)
    work = max(forward_bytes(widest, element, tokens), float(chunk)) + hidden
    return {"weights": float(sum(element * m.parameters for m in models)), "at work": work}


def cache_bytes(model: ModelSizes, element: int, tokens: float) -> float:
    """Keys and values of so many tokens."""
    return model.cost.cache * element * tokens
