"""Who scores a row: models in this process or behind servers, each with its view of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from gopd.frozen import FrozenModels
from gopd.model import LanguageModel
from gopd.remote import Server
from gopd.sampler import Finished, Progress, Request, Response, nothing
from gopd.sampler.torch import TorchSampler
from gopd.sections import SamplingSection, View


@dataclass(frozen=True)
class Seat:
    """A frozen model as one role uses it: with a view of the prompt. `adapters_off`: the base under LoRA."""

    model: LanguageModel
    view: View
    adapters_off: bool = False

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """What prompts are rendered with."""
        return self.model.tokenizer

    def as_frozen(self) -> AbstractContextManager[None]:
        """Inside, the model is frozen weights only."""
        return self.model.without_adapters() if self.adapters_off else nullcontext()


@dataclass(frozen=True)
class RemoteSeat:
    """A model behind a server as one role uses it: it gives log-probs of tokens, and nothing else."""

    server: Server
    view: View
    tokenizer: PreTrainedTokenizerBase


Part = Literal["teacher", "reference"]


@dataclass(frozen=True)
class Route:
    """One teacher with what belongs to it. `reference` is None exactly when λ = 1.

    With method grpo there is one route, None, and the reference stands in the teacher's place.
    """

    teacher: Seat | RemoteSeat
    reference: Seat | RemoteSeat | None
    reward_scale: float

    @property
    def parts(self) -> list[tuple[Part, Seat | RemoteSeat]]:
        """Who scores a row, and as what."""
        if self.reference is None:
            return [("teacher", self.teacher)]
        return [("teacher", self.teacher), ("reference", self.reference)]

    @property
    def local(self) -> list[Seat]:
        """Those in this process, which are needed side by side."""
        return [seat for _, seat in self.parts if isinstance(seat, Seat)]

    @property
    def is_local(self) -> bool:
        """Whether all are in this process, so that whole distributions are at hand."""
        return len(self.local) == len(self.parts)

    @property
    def models(self) -> list[LanguageModel]:
        """The models in this process."""
        return [seat.model for seat in self.local]


class FrozenSampler(TorchSampler):
    """A teacher's answers; its weights come into memory when it is asked."""

    def __init__(self, model: LanguageModel, frozen: FrozenModels, slots: int) -> None:
        super().__init__(model, slots)
        self._frozen = frozen

    def sample(
        self,
        requests: Sequence[Request],
        sampling: SamplingSection,
        progress: Progress,
        finished: Finished = nothing,
    ) -> list[Response]:
        """Answers every request, in order."""
        self._frozen.use([self.model])
        return super().sample(requests, sampling, progress, finished)
