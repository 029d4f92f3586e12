"""Frozen models in memory: one for all who name the same weights, and no more at a time than a budget allows.

A model whose weights are not in memory keeps its shape: each parameter is one NaN, repeated, so that using it by
mistake cannot go unseen. Its weights come back from its files, by memory mapping and without Transformers, in a thread
of their own while other models compute.
"""

from __future__ import annotations

import filecmp
import json
import mmap
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from gopd import attention
from gopd.errors import BadInput, RunFailed
from gopd.model import LanguageModel, load_config, load_model, model_source
from gopd.sections import ModelSpec

Group = TypeVar("Group")
Weights = dict[str, Tensor]
"""Parameters of a model by their names in it."""

CONTENT = frozenset((".safetensors", ".json", ".jinja", ".txt", ".model", ".py"))
"""Endings of the files that make a model what it is."""


class FrozenModels:
    """Models that never change, each loaded once, however many roles name it.

    With a budget in bytes they take turns: `use` brings weights in, in place of those used the longest ago that are
    not needed soon. `loads` counts by model name how often weights were read, `peak_bytes` is the most that weights
    took at any time, prefetched ones included. With `host_copies` (by default on a GPU) weights that leave the device
    stay in host memory where there is room.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        dtype: torch.dtype,
        budget: int | None = None,
        host_copies: bool | None = None,
    ) -> None:
        self._device, self._dtype, self._budget = device, dtype, budget
        self._host_copies = device.type == "cuda" if host_copies is None else host_copies
        self._members: dict[tuple[str, str | None], _Member] = {}
        self._by_model: dict[int, _Member] = {}
        self._held: dict[_Member, Future[Weights] | None] = {}  # least recently used first; or on its way
        self._sizes: dict[tuple[str, str | None], int] = {}
        self._twins: dict[Path, Path] = {}
        self._thread: ThreadPoolExecutor | None = None
        self.loads: Counter[str] = Counter()
        self.peak_bytes = 0

    @property
    def models(self) -> list[LanguageModel]:
        """The distinct models, in memory or not."""
        return [member.model for member in self._members.values()]

    @property
    def held_bytes(self) -> int:
        """What the weights in memory take, and those on their way."""
        return sum(member.bytes for member in self._held)

    def check(self, together: Mapping[str, ModelSpec]) -> None:
        """BadInput when models that are needed side by side, by their roles, exceed the budget; loads nothing."""
        if self._budget is None:
            return
        distinct = {self._key(spec, role): (role, spec) for role, spec in together.items()}
        sizes = {role: self._size(spec, role) for role, spec in distinct.values()}
        if sum(sizes.values()) > self._budget:
            shown = " and ".join(f"{role} with {_gb(size)}" for role, size in sizes.items())
            raise BadInput(
                f"scoring.memory_gb is {self._budget / 1e9:g}, too little for {shown}, which are needed at the same "
                f"time; set it to {_gb(sum(sizes.values()))} at least, and to more for models to be fetched ahead"
            )

    def get(self, spec: ModelSpec, role: str) -> LanguageModel:
        """The model, loaded and checked when it is named for the first time. Raises BadInput as `load_model` does."""
        key = self._key(spec, role)
        member = self._members.get(key)
        if member is None:
            member = self._members[key] = self._load(spec, role)
            self._by_model[id(member.model)] = member
        elif member in self._held:
            self._hold(member, None)
        return member.model

    def _load(self, spec: ModelSpec, role: str) -> _Member:
        limited, size = self._budget is not None, 0
        if limited:
            size = self._size(spec, role)
            fits = self._make_room(size, spared=[], later=[])
            assert fits, "checked before"
        model = load_model(spec, role, device=self._device, dtype=self._dtype).freeze()
        member = _Member(spec, role, size, model)
        if limited:
            member.readable = member.in_files()
        self._hold(member, None)
        self.loads[model.name] += 1
        return member

    def order(self, groups: Mapping[Group, Sequence[LanguageModel]]) -> list[Group]:
        """Groups of models that are used side by side, in an order with few changes; without a budget, as given."""
        if self._budget is None:
            return list(groups)
        waiting = {group: self._known(models) for group, models in groups.items()}
        ordered: list[Group] = []
        held = set(self._held)
        near = held
        while waiting:
            missing = {g: sum(m.bytes for m in {*members} - near) for g, members in waiting.items()}
            ordered.append(min(missing, key=missing.__getitem__))
            near = held | {*waiting.pop(ordered[-1])}
        return ordered

    def use(self, models: Sequence[LanguageModel], later: Sequence[LanguageModel] = ()) -> None:
        """Has the weights of some models in memory until the next call; those needed `later` come while they work.

        Others than these models, such as the student, are left alone. Raises RunFailed when files cannot be read.
        """
        if self._budget is None:
            return
        present, coming = self._known(models), self._known(later)
        for member in present:
            if member not in self._held:
                fits = self._make_room(member.bytes, present, coming)
                assert fits, "checked at the start"
                member.fill(self._read(member))
            elif (future := self._held[member]) is not None:
                member.fill(future.result())
            self._hold(member, None)
        self._prefetch(present, coming)

    def _known(self, models: Sequence[LanguageModel]) -> list[_Member]:
        return [self._by_model[id(model)] for model in models if id(model) in self._by_model]

    def _prefetch(self, present: list[_Member], coming: list[_Member]) -> None:
        """Starts to read what is needed next, soonest first, as far as it fits beside what is needed before it."""
        for place, member in enumerate(coming):
            if member in self._held:
                continue
            if not member.fetchable or not self._make_room(
                member.bytes, [*present, *coming[:place]], coming[place:]
            ):
                return
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="frozen")
            self._hold(member, self._thread.submit(self._read, member))

    def _make_room(self, size: int, spared: list[_Member], later: list[_Member]) -> bool:
        """Drops models until so many bytes more fit: those not needed later first, of these the longest unused.

        False, with nothing dropped, where that would take spared ones as well.
        """
        assert self._budget is not None
        free = [member for member in self._held if member not in spared]
        if self.held_bytes - sum(member.bytes for member in free) + size > self._budget:
            return False
        while self.held_bytes + size > self._budget:
            victim = max(free, key=lambda m: later.index(m) if m in later else len(later))
            free.remove(victim)
            future = self._held.pop(victim)
            if future is None:
                victim.drop(host_copy=self._host_copies)
            else:
                future.result()  # it cannot be stopped half-way
        return True

    def _hold(self, member: _Member, future: Future[Weights] | None) -> None:
        """Puts a model last in the order of use."""
        self._held.pop(member, None)
        self._held[member] = future
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)

    def _read(self, member: _Member) -> Weights:
        self.loads[member.model.name] += 1
        return member.read()

    def _size(self, spec: ModelSpec, role: str) -> int:
        key = self._key(spec, role)
        if key not in self._sizes:
            self._sizes[key] = weight_bytes(spec, role, self._dtype)
        return self._sizes[key]

    def _key(self, spec: ModelSpec, role: str) -> tuple[str, str | None]:
        """What is equal for equal weights: a folder, the first one with the same content; or a Hub name."""
        source = model_source(spec, role)
        folder = Path(source)
        if not folder.is_dir():
            return source, spec.revision
        if folder not in self._twins:
            known = dict.fromkeys(self._twins.values())
            self._twins[folder] = next((other for other in known if same_content(other, folder)), folder)
        return str(self._twins[folder]), spec.revision


class _Member:
    """A model and where its weights come from. `readable`: its files hold the parameters as they are, by name."""

    def __init__(self, spec: ModelSpec, role: str, size: int, model: LanguageModel) -> None:
        self.spec, self.role, self.bytes, self.model = spec, role, size, model
        self.readable = False
        self._host: Weights | None = None
        self._device, self._dtype = model.device, model.head_VD.dtype

    @property
    def fetchable(self) -> bool:
        """Whether `read` may run in a thread of its own: Transformers must not, as it sets global defaults."""
        return self.readable or self._host is not None

    def drop(self, *, host_copy: bool) -> None:
        """Lets go of the weights."""
        if host_copy and self._host is None and self.bytes < free_memory():
            pin = self._device.type == "cuda"
            self._host = {n: _to_host(p.data, pin) for n, p in self.model.module.named_parameters()}
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # work on the weights may still be queued
        for parameter in self.model.module.parameters():
            nan = torch.full((1,), torch.nan, dtype=parameter.dtype, device=parameter.device)
            parameter.data = nan.expand(parameter.shape)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def fill(self, weights: Weights) -> None:
        """Takes weights up again."""
        for name, parameter in self.model.module.named_parameters():
            parameter.data = weights[name]

    def read(self) -> Weights:
        """The weights on the model's device, mapped from the files where nothing is converted.

        Raises RunFailed when the files are not what they were.
        """
        if self._host is not None:
            return {n: w.to(self._device, copy=True, non_blocking=True) for n, w in self._host.items()}
        try:
            if (
                not self.readable
            ):  # Transformers renames or joins them; not in a thread, as it sets global defaults
                again = load_model(self.spec, self.role, device=self._device, dtype=self._dtype).freeze()
                return {name: parameter.data for name, parameter in again.module.named_parameters()}
            dtypes = {name: parameter.dtype for name, parameter in self.model.module.named_parameters()}
            found: Weights = {}
            for path in self._files():
                with safe_open(path, "pt") as file:
                    for name in dtypes.keys() & {*file.keys()}:
                        found[name] = _present(file.get_tensor(name).to(self._device, dtypes[name]))
        except (OSError, SafetensorError, BadInput) as error:
            raise RunFailed(f"{self.model.name}: its weights cannot be read again: {error}") from error
        if missing := sorted(dtypes.keys() - found.keys()):
            raise RunFailed(f"{self.model.name}: its weights have changed since the start: no {missing[0]}")
        return found

    def in_files(self) -> bool:
        """Whether the files have every parameter by its own name, with the very value it has in the model."""
        parameters = dict(self.model.module.named_parameters())
        for path in self._files():
            with safe_open(path, "pt") as file:
                for name in parameters.keys() & {*file.keys()}:
                    parameter = parameters[name]
                    if torch.equal(file.get_tensor(name).to(parameter.device, parameter.dtype), parameter):
                        del parameters[name]
        return not parameters

    def _files(self) -> list[Path]:
        """The safetensors files that Transformers reads."""
        source = model_source(self.spec, self.role)
        folder = Path(source)
        if not folder.is_dir():
            folder = Path(snapshot_download(source, revision=self.spec.revision, local_files_only=True))
        index = folder / "model.safetensors.index.json"
        if (folder / "model.safetensors").exists() or not index.exists():
            return [folder / "model.safetensors"]
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted({*names})]


def weight_bytes(spec: ModelSpec, role: str, dtype: torch.dtype) -> int:
    """What a model's weights take in memory, from its configuration alone. Raises BadInput."""
    config = load_config(spec, role)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(
            config,
            dtype=dtype,
            attn_implementation=attention.NAME,
            trust_remote_code=spec.trust_remote_code,
        )
    return sum(parameter.nbytes for parameter in module.parameters())


def same_content(one: Path, other: Path) -> bool:
    """Whether two model folders hold the same weights, configuration and tokenizer.

    Files that are one on disk, as links are, count as equal unread; others are compared byte by byte, smallest first
    and only as far as they agree, so that fine-tuned siblings are told apart at once.
    """
    mine, theirs = _content(one), _content(other)
    if {name: path.stat().st_size for name, path in mine.items()} != {
        name: path.stat().st_size for name, path in theirs.items()
    }:
        return False
    names = sorted(mine, key=lambda name: mine[name].stat().st_size)
    return all(
        os.path.samefile(mine[n], theirs[n]) or filecmp.cmp(mine[n], theirs[n], shallow=False) for n in names
    )


def free_memory() -> int:
    """Bytes of the machine's memory that nobody uses."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _content(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.iterdir() if path.suffix in CONTENT and path.is_file()}


def _present(weight: Tensor) -> Tensor:
    """A weight whose pages are in memory: what is mapped from a file is only read when it is touched."""
    if weight.device.type == "cpu":
        weight.flatten().view(torch.uint8)[:: mmap.PAGESIZE].sum()
    return weight


def _to_host(weight: Tensor, pin: bool) -> Tensor:
    return torch.empty_like(weight, device="cpu", pin_memory=pin).copy_(weight)


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
