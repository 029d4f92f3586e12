"""A model's sizes from its configuration alone: built on the device `meta`, no weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from gopd.cost import ModelCost
from gopd.errors import BadInput
from gopd.model import model_source
from gopd.plan.published import CONFIGS, MADE_FROM
from gopd.sections import ModelSpec

DENSE = ("llama", "mistral", "qwen2", "qwen3")
MIXTURES = ("qwen3_moe",)


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts: of `count` in each block, `chosen` see a token; `width` is one's inner width."""

    count: int
    chosen: int
    width: int


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """What memory and cost follow from. Counts are of numbers, not bytes.

    `cost` counts for a mixture of experts what one token uses; `parameters` counts everything.
    """

    name: str
    source: str
    """Where the configuration comes from, for the user."""
    kind: str
    cost: ModelCost
    parameters: int
    block: int
    """Parameters of the largest decoder block."""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_width: int
    inner: int
    """Inner width of the gated MLP."""
    vocabulary: int
    tied: bool
    head_norms: bool
    """Whether queries and keys are normalised head by head (Qwen3)."""
    experts: Experts | None

    @property
    def root(self) -> int:
        """Parameters outside the decoder blocks: embeddings, last norm, head."""
        return self.parameters - self.layers * self.block

    @property
    def queries(self) -> int:
        """Width of all query heads of a layer."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Width of all key heads of a layer."""
        return self.kv_heads * self.head_width


def sizes_of(config: PreTrainedConfig, name: str, source: str, element: int) -> ModelSizes:
    """The sizes of a configuration whose numbers take `element` bytes in computations.

    Raises BadInput for kinds whose memory is not known here.
    """
    kind = config.model_type
    if kind not in (*DENSE, *MIXTURES):
        raise BadInput(
            f"{name}: gopd plan does not know models of type {kind!r}; it counts {', '.join((*DENSE, *MIXTURES))}"
        )
    with torch.device("meta"):
        module: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    cost = ModelCost.of_module(module, element)
    experts = None
    if kind in MIXTURES:
        experts = Experts(config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size)
        cost = replace(cost, body=cost.body + _used(config, experts))
    return ModelSizes(
        name=name,
        source=source,
        kind=kind,
        cost=cost,
        parameters=sum(p.numel() for p in module.parameters()),
        block=max(_block_sizes(module)),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_width=cost.attention // (config.num_hidden_layers * config.num_attention_heads),
        inner=config.intermediate_size,
        vocabulary=config.vocab_size,
        tied=config.tie_word_embeddings,
        head_norms=kind.startswith("qwen3"),
        experts=experts,
    )


def _used(config: PreTrainedConfig, experts: Experts) -> int:
    """Weights of routers and experts that one token meets; Transformers keeps them outside of linear layers."""
    sparse = config.num_hidden_layers - len(config.mlp_only_layers)
    if config.decoder_sparse_step != 1 or config.mlp_only_layers:
        raise BadInput("gopd plan counts mixtures of experts only where every block is one")
    each = experts.count * config.hidden_size + experts.chosen * 3 * experts.width * config.hidden_size
    return int(sparse * each)


def _block_sizes(module: PreTrainedModel) -> list[int]:
    """Parameters of each decoder block: what Transformers says must not be split over devices."""
    blocks = set(module._no_split_modules or ())
    found = [m for m in module.modules() if type(m).__name__ in blocks]
    return [sum(p.numel() for p in block.parameters()) for block in found]


def find_sizes(spec: ModelSpec, role: str, like: Mapping[str, str], element: int) -> ModelSizes:
    """The sizes of a recipe's model: of the model or folder that `like` names for this role, else of its own folder,
    a published architecture, or the Hub's config.json. Raises BadInput when none is found.
    """
    if role in like:
        spec = ModelSpec(model=like[role])
    name = MADE_FROM.get(spec.model, spec.model)
    if name in CONFIGS:
        config = AutoConfig.for_model(**CONFIGS[name])
        source = f"published sizes of {name}"
        source += "" if name == spec.model else f", which {spec.model} was trained from"
    else:
        try:
            config = AutoConfig.from_pretrained(
                model_source(spec, role),
                revision=spec.revision,
                trust_remote_code=spec.trust_remote_code,
            )
        except (OSError, ValueError) as error:
            raise BadInput(
                f"{role}: no configuration of {spec.model!r} here or on the Hub; a plan needs only its config.json: "
                f"say what it is like by --like {role}=NAME, with a folder that holds config.json, a Hub name or one "
                f"of {', '.join(CONFIGS)}"
            ) from error
        source = f"config.json of {spec.model}"
    if role in like:
        source += " (--like)"
    return sizes_of(config.get_text_config(), spec.model, source, element)
