"""A causal language model, split where distillation needs it: body (ids → hidden states) and head (→ logits)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gopd import attention
from gopd.attention import DecodeLayout, PackedLayout
from gopd.errors import BadInput
from gopd.logprobs import Projection
from gopd.model_files import check_files
from gopd.packing import Packed
from gopd.rows import resolve
from gopd.sections import LoraSection, ModelSpec
from gopd.sharding import Ranks, Root, shard, whole
from gopd.verl.checkpoint import refuse_shards

T = TypeVar("T")


class LanguageModel:
    """A Transformers causal LM with gopd's attention.

    `module` is the whole model as Transformers knows it; `adapters`, when LoRA is on, the PEFT wrapper around it.
    With `narrow` the body computes in bfloat16 whatever the weights' dtype, and hidden states come in bfloat16.
    `root` is set where ranks share the weights; what uses the head must then go through `together`. `device` is where
    the model computes, which is not where its weights are while ranks keep their parts in host memory.
    """

    def __init__(
        self, module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, *, narrow: bool = False
    ) -> None:
        self.module = module
        self.tokenizer = tokenizer
        self.name = name
        self.narrow = narrow
        self.adapters: Any = None
        self.root: Root | None = None
        self.body = cast(nn.Module, module.get_decoder())
        self.device = self.head_VD.device

    @property
    def head_VD(self) -> Tensor:
        """The output embedding; row v gives the logit of token v."""
        return cast(Tensor, self.module.get_output_embeddings().weight)

    @property
    def eos_ids(self) -> list[int]:
        """Tokens that end a response: the generation config's, else the tokenizer's."""
        return _eos_ids(self.module.generation_config, self.tokenizer, self.name)

    @property
    def context_length(self) -> int:
        """The longest prompt + response the model was made for."""
        return _context_length(self.module.config)

    def forward(self, input_ids: Tensor, position_ids: Tensor, layout: PackedLayout | DecodeLayout) -> Tensor:
        """Final hidden states, after the last norm; ids and positions [batch, tokens] → [batch, tokens, D]."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.narrow):
            out = self.body(input_ids=input_ids, position_ids=position_ids, use_cache=False, layout=layout)
        hidden = cast(Tensor, out.last_hidden_state)
        return hidden.bfloat16() if self.narrow else hidden

    def project(self, packed: Packed) -> Projection:
        """Hidden states that predict the response tokens of packed rows, with the head: one forward pass."""
        layout = PackedLayout(packed.lengths, packed.after)
        hidden = self.forward(packed.input_ids_T.unsqueeze(0), packed.position_ids_T.unsqueeze(0), layout)
        # Not by indexing: where places repeat, its backward adds in no fixed order.
        return Projection(hidden[0].index_select(0, packed.predicts_T), self.head_VD)

    def together(self, call: Callable[[], T]) -> T:
        """The result of a computation that uses body and head; weights that ranks share are whole inside."""
        if self.root is None:
            return call()
        found = cast(T, self.root(call))
        if not torch.is_grad_enabled():
            cast(FSDPModule, self.root).reshard()  # otherwise the backward pass does
        return found

    def shard(self, ranks: Ranks, *, offload: bool) -> None:
        """Keeps only this rank's part of the weights, on its device, and leaves the rest to the others."""
        assert ranks.mesh is not None
        self.root = shard(self.module, ranks, narrow=self.narrow, offload=offload)
        self.device = torch.device(ranks.mesh.device_type)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight by its Hugging Face name, whole and with adapters merged in, one at a time.

        Where ranks share them all must go through it side by side.
        """
        for name, parameter in self.module.named_parameters():
            layer, _, kind = name.rpartition(".base_layer.")
            if layer:
                yield f"{layer}.{kind}", self._merged(layer, kind, parameter)
            elif ".lora_" not in name:
                yield name, whole(parameter.detach())

    def _merged(self, layer: str, kind: str, parameter: Tensor) -> Tensor:
        """A weight or bias of a layer under an adapter: W + scaling · B A."""
        base = whole(parameter.detach())
        if kind != "weight":
            return base
        module: Any = self.module.get_submodule(layer)
        (adapter,) = module.active_adapters
        up, down = (whole(part[adapter].weight.detach()) for part in (module.lora_B, module.lora_A))
        change: Tensor = module.scaling[adapter] * (up @ down)
        return base + change

    def add_lora(self, lora: LoraSection, seed: int) -> None:
        """Freezes the weights and adds trainable low-rank adapters (PEFT), initialised from `seed`.

        The head stays bare, as it is used without its module; BadInput when the recipe wants adapters on it.
        """
        from peft import LoraConfig, get_peft_model

        targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=targets,
            task_type="CAUSAL_LM",
        )
        ends = (self.module.get_input_embeddings(), self.module.get_output_embeddings())
        torch.manual_seed(seed)
        try:
            self.adapters = get_peft_model(self.module, config)
        except ValueError as error:
            raise BadInput(f"student.lora: {error}") from error
        self.module.eval()  # new modules start in train mode, and adapter dropout must not reach the sampler
        if (self.module.get_input_embeddings(), self.module.get_output_embeddings()) != ends:
            raise BadInput(
                "student.lora: target_modules names the embeddings or the head; only inner layers can adapt"
            )

    @contextlib.contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Inside, the model is its base: what it was before `add_lora`."""
        with self.adapters.disable_adapter():
            yield

    def freeze(self) -> LanguageModel:
        """No parameter will ever get a gradient."""
        self.module.requires_grad_(False)
        return self


def load_model(
    spec: ModelSpec, role: str, *, device: torch.device, dtype: torch.dtype, narrow: bool = False
) -> LanguageModel:
    """Loads weights and tokenizer of a model folder, Hub name or `builtin:` name; eval mode.

    Pickle weights are never read. Raises BadInput, naming the role, when the model is missing or incomplete, has
    no tokenizer, or is of a kind whose logits are not head · hidden with full causal attention.
    """
    source = model_source(spec, role)
    tokenizer, config = load_tokenizer(spec, role), load_config(spec, role)
    _generation_config(spec, role, config)
    with _foreign(spec, role):
        check_files(source, spec.revision, config, f"{role}: {spec.model}")
        both: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            attn_implementation=attention.NAME,  # with `config`, or one that the configuration names comes first
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            revision=spec.revision,
            trust_remote_code=spec.trust_remote_code,
        )
        module, loaded = both
    # Transformers fills what a checkpoint lacks with random numbers; here that is an error.
    if wrong := sorted([*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])]):
        raise BadInput(
            f"{role}: the weights of {spec.model!r} do not fit its config.json: {len(wrong)} tensors are missing or "
            f"of another shape, the first is {wrong[0]}; give a complete model folder"
        )
    if len(tokenizer) > module.get_output_embeddings().weight.shape[0]:
        raise BadInput(
            f"{role}: the tokenizer of {spec.model!r} knows {len(tokenizer)} tokens, its head has "
            f"{module.get_output_embeddings().weight.shape[0]} rows; they do not belong together"
        )
    module.to(device).eval()
    model = LanguageModel(module, tokenizer, f"{role} ({spec.model})", narrow=narrow)
    with _foreign(spec, role):
        _check_logits(model)
    return model


def load_tokenizer(spec: ModelSpec, role: str) -> PreTrainedTokenizerBase:
    """The tokenizer alone; BadInput, naming the role, when there is none."""
    source = model_source(spec, role)
    with _foreign(spec, role):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
    return tokenizer


@dataclass(frozen=True)
class Description:
    """What is known of a model without its weights. `logits` is the size of its output."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    generation: GenerationConfig
    context_length: int
    logits: int

    @property
    def eos_ids(self) -> list[int]:
        """Tokens that end a response."""
        return _eos_ids(self.generation, self.tokenizer, self.name)


def describe(spec: ModelSpec, role: str) -> Description:
    """A model's tokenizer and the figures of its configuration; BadInput, naming the role, when it is not there."""
    config = load_config(spec, role)
    tokenizer = load_tokenizer(spec, role)
    generation = _generation_config(spec, role, config)
    logits = config.get_text_config().vocab_size
    return Description(f"{role} ({spec.model})", tokenizer, generation, _context_length(config), logits)


def _generation_config(spec: ModelSpec, role: str, config: PreTrainedConfig) -> GenerationConfig:
    """The model's own, or what its configuration says where it has none; BadInput where it is damaged."""
    source = model_source(spec, role)
    with _foreign(spec, role):
        try:
            return GenerationConfig.from_pretrained(source, revision=spec.revision or "main")
        except OSError:
            if (Path(source) / "generation_config.json").is_file():
                raise
            return GenerationConfig.from_model_config(config)


def _eos_ids(generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase, name: str) -> list[int]:
    own = None if generation is None else generation.eos_token_id
    ids = own if isinstance(own, list) else [own]
    found = {int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None}
    if not found:
        raise BadInput(f"{name}: no end-of-sequence token in its generation config or tokenizer")
    return sorted(found)


def load_config(spec: ModelSpec, role: str) -> PreTrainedConfig:
    """A model's configuration alone. Raises BadInput."""
    source = model_source(spec, role)
    with _foreign(spec, role):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            source, revision=spec.revision, trust_remote_code=spec.trust_remote_code
        )
        _check_kind(config, role, spec.model)
    return config


def context_length(spec: ModelSpec, role: str) -> int:
    """The longest prompt + response of a model, from its configuration alone. Raises BadInput."""
    return _context_length(load_config(spec, role))


@contextlib.contextmanager
def _foreign(spec: ModelSpec, role: str) -> Iterator[None]:
    """Inside, whatever Transformers raises over a model's files becomes BadInput: they can make it raise anything."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        what = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        raise BadInput(
            f"{role}: cannot load model {spec.model!r}: {what}{' '.join(str(error).split())[:400]}"
        ) from error


def _context_length(config: PreTrainedConfig) -> int:
    return int(config.get_text_config().max_position_embeddings)


def model_source(spec: ModelSpec, role: str) -> str:
    """The folder or Hub name to load; BadInput when a path that can only be local does not exist."""
    if spec.model.startswith("builtin:"):
        return str(resolve(spec.model))
    path = Path(os.path.expanduser(spec.model))  # these of os.path give in where pathlib's raise
    if os.path.isdir(path):
        refuse_shards(path, role)
        return str(path.resolve())
    if path.is_absolute() or spec.model.startswith((".", "~")) or spec.model.count("/") != 1:
        raise BadInput(
            f"{role}: no model folder at {spec.model!r}; give a folder, a Hub name (org/name) or builtin:NAME"
        )
    return spec.model


def _check_kind(config: Any, role: str, name: str) -> None:
    text = config.get_text_config().to_dict()
    kinds = set(
        text.get("layer_types") or ["sliding_attention" if text.get("sliding_window") else "full_attention"]
    )
    if kinds != {"full_attention"}:
        raise BadInput(
            f"{role}: {name!r} has {', '.join(sorted(kinds - {'full_attention'}))} layers; "
            "gopd supports models with full causal attention in every layer"
        )


@torch.no_grad()
def _check_logits(model: LanguageModel) -> None:
    """Two packed rows through body and bare head must give the model's own logits of each row alone.

    That rules out soft-capping, scaling, and models that mix packed rows because they bring their own attention.
    """
    lengths = [3, 4]
    ids_T = torch.arange(sum(lengths), device=model.device) % model.head_VD.shape[0]
    positions_T = torch.cat([torch.arange(n) for n in lengths]).to(model.device)
    hidden_TD = model.forward(ids_T[None], positions_T[None], PackedLayout(lengths))[0]
    own_TV = Projection(hidden_TD, model.head_VD).logits(slice(None), 1.0)
    model.module.set_attn_implementation("eager")
    rows = [model.module(input_ids=row[None], use_cache=False).logits[0] for row in ids_T.split(lengths)]
    model.module.set_attn_implementation(attention.NAME)
    theirs_TV = torch.cat(rows)
    tolerance = 1e-3 if hidden_TD.dtype == torch.float32 else 0.1
    scale = float(theirs_TV.abs().max().clamp_min(1))
    if not torch.isfinite(theirs_TV).all():
        raise BadInput(f"{model.name}: its logits are not finite; the weights are damaged")
    if float((own_TV - theirs_TV).abs().max()) > tolerance * scale:
        raise BadInput(
            f"{model.name}: its logits are not head·hidden with plain causal attention "
            "(soft-capping, scaling or an attention of its own); unsupported"
        )
