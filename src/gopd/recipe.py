"""The recipe of each method: everything a run depends on. No torch here.

Defaults are the published G-OPD settings (Yang et al. 2026, arXiv 2602.12125); `sections.py` and `run_sections.py`
have the parts, `recipe_file.py` reads and writes recipes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from gopd.masking import refuse_secrets
from gopd.run_sections import CheckpointSection, ClusterSection, GuardSection, TrackingSection, TrainSection
from gopd.section import Positive, Section
from gopd.sections import (
    Aggregation,
    CorrectionSection,
    DataSection,
    FrozenSection,
    GrpoSection,
    ObjectiveSection,
    OptimSection,
    ReferenceSection,
    RemoteSection,
    SamplerSection,
    ScoringSection,
    StudentSection,
    TeacherSection,
    ValidationSection,
    View,
)

LONGEST_NAME = 60
"""Characters of a teacher's name, which becomes part of file names."""


class Recipe(Section):
    """What every method shares."""

    student: StudentSection
    data: DataSection
    validation: ValidationSection | None = None
    optim: OptimSection = OptimSection()
    train: TrainSection
    guard: GuardSection = GuardSection()
    checkpoint: CheckpointSection = CheckpointSection()
    tracking: TrackingSection = TrackingSection()
    cluster: ClusterSection = ClusterSection()

    @model_validator(mode="after")
    def _without_secrets(self) -> Self:
        refuse_secrets(self.model_dump(mode="json"))
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> Self:
        if self.checkpoint.keep_best and self.validation is None:
            raise ValueError("checkpoint.keep_best needs a validation section to tell which is best")
        return self

    @model_validator(mode="after")
    def _guarded_is_known(self) -> Self:
        if self.guard.loss is not None and (why := self._loss_without_meaning()) is not None:
            raise ValueError(f"guard.loss: {why}; use guard.grad_norm or guard.kl")
        if self.guard.kl is not None and (why := self._kl_unknown()) is not None:
            raise ValueError(f"guard.kl: {why}; use guard.grad_norm")
        return self

    def _loss_without_meaning(self) -> str | None:
        """Why the value of the loss says nothing, where that is so."""
        return None

    def _kl_unknown(self) -> str | None:
        """Why no KL is measured in training, where that is so."""
        return None

    @property
    def validation_response_tokens(self) -> int:
        """Response limit of validation: its own, else that of training."""
        own = None if self.validation is None else self.validation.max_response_tokens
        return own or self.data.max_response_tokens


class SampledRecipe(Recipe):
    """What the methods share whose student learns from its own samples."""

    reference: ReferenceSection | None = None
    """None: the student's initial weights."""
    grpo: GrpoSection = GrpoSection()
    correction: CorrectionSection = CorrectionSection()
    sampler: SamplerSection = SamplerSection()
    scoring: ScoringSection = ScoringSection()

    @model_validator(mode="after")
    def _servers_suffice(self) -> Self:
        if (role := next(iter(self.servers()), None)) is not None and self.sampler.temperature != 1:
            raise ValueError(
                f"{role} is scored by a server, whose log-probs are those of temperature 1, and sampler.temperature is "
                f"{self.sampler.temperature:g}; sample at 1 or score in this process"
            )
        return self

    @model_validator(mode="after")
    def _updates_in_flight(self) -> Self:
        if not self.sampler.vllm.in_flight_updates:
            return self
        if self.sampler.engine != "vllm":
            raise ValueError(
                "sampler.vllm.in_flight_updates is set, but sampler.engine is torch; set it to vllm"
            )
        if not self.train.max_staleness:
            raise ValueError(
                "sampler.vllm.in_flight_updates is set, but with train.max_staleness 0 nothing new comes while a batch "
                "is sampled; raise it to 1 or more"
            )
        return self

    @property
    def scored(self) -> bool:
        """Whether any frozen model takes part."""
        return self.grpo.kl_weight > 0

    def teacher_routes(self) -> list[str | None]:
        """Routes whose rows are scored; None where one reference scores all."""
        return [None]

    def frozen(self, route: str | None) -> dict[str, FrozenSection]:
        """Models that are named for a route, the teacher first, by their role in messages.

        A reference that is the student's initial weights is not among them.
        """
        return {} if self.reference is None else {"reference": self.reference}

    def frozen_models(self) -> dict[str, FrozenSection]:
        """Those of all routes."""
        return {role: spec for route in self.teacher_routes() for role, spec in self.frozen(route).items()}

    def servers(self) -> dict[str, RemoteSection]:
        """Servers that score in the place of models, by the models' roles."""
        return {role: spec.server for role, spec in self.frozen_models().items() if spec.server is not None}

    def has_teacher(self, route: str | None) -> bool:
        """Whether a teacher scores this route's rows."""
        return False

    def learns_from_reward(self, route: str | None) -> bool:
        """Whether the verifier's reward is in the loss of this route's rows."""
        return not self.has_teacher(route)

    def _loss_without_meaning(self) -> str | None:
        return "the loss of method grpo is about 0 whatever happens"

    def _kl_unknown(self) -> str | None:
        return None if self.grpo.kl_weight > 0 else "without grpo.kl_weight no reference is asked"

    def _check_groups(self, key: str) -> None:
        if self.sampler.samples_per_prompt == 1:
            raise ValueError(
                f"{key} judges a response against the others to the same prompt, and sampler.samples_per_prompt is 1: "
                "every advantage would be 0; set it to 2 or more (published: 8)"
            )


class OpdRecipe(SampledRecipe):
    """On-policy distillation from one or more teachers (G-OPD; λ = 1 is OPD, λ > 1 ExOPD)."""

    method: Literal["opd"] = "opd"
    teachers: dict[str, TeacherSection] = Field(min_length=1)
    reward_routes: tuple[str, ...] = ()
    """Routes without a teacher: their rows learn from the verifier alone, by the section `grpo`."""
    objective: ObjectiveSection = ObjectiveSection()

    @model_validator(mode="after")
    def _names(self) -> Self:
        for name in self.teachers:
            if not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
                raise ValueError(
                    f"teachers: {name!r:.80} cannot be a teacher's name; printable characters are meant, "
                    f"{LONGEST_NAME} at most"
                )
        return self

    @model_validator(mode="after")
    def _rewards(self) -> Self:
        if both := sorted({*self.reward_routes} & {*self.teachers}):
            raise ValueError(
                f"reward_routes: {both[0]!r} has a teacher; a route learns from one or the other"
            )
        if self.reward_routes:
            self._check_groups("reward_routes")
        if self.objective.reward_weight > 0:
            self._check_groups("objective.reward_weight")
        if self.grpo.kl_weight > 0:
            raise ValueError(
                "grpo.kl_weight belongs to method grpo; here the teachers' targets hold the reference"
            )
        return self

    @model_validator(mode="after")
    def _servers_give_one_number(self) -> Self:
        role = next(iter(self.servers()), None)
        if role is None:
            return self
        needs = [("objective.estimator", f"{self.objective.estimator} compares whole distributions")]
        needs = [] if self.objective.estimator == "sampled" else needs
        if self.objective.control_variate:
            needs.append(("objective.control_variate", "it is a mean over the whole vocabulary"))
        if self.validation is not None and self.validation.teachers and role.startswith("teacher "):
            needs.append(("validation.teachers", "it lets teachers answer"))
        if needs:
            key, why = needs[0]
            raise ValueError(
                f"{role} is scored by a server, which gives one number for each token; {key}: {why}; "
                "change it or score in this process"
            )
        return self

    @property
    def scored(self) -> bool:
        """Whether any frozen model takes part."""
        return True

    def teacher_routes(self) -> list[str | None]:
        """Routes whose rows are scored."""
        return list(self.teachers)

    def frozen(self, route: str | None) -> dict[str, FrozenSection]:
        """A route's teacher, and the reference that is named for it where λ needs one, by their role in messages."""
        assert route is not None
        found: dict[str, FrozenSection] = {f"teacher {route}": self.teachers[route]}
        reference = self.reference_of(route)
        if reference is not None and self.reward_scale(route) != 1:
            found[f"reference of {route}"] = reference
        return found

    def has_teacher(self, route: str | None) -> bool:
        """Whether a teacher scores this route's rows."""
        return route not in self.reward_routes

    def learns_from_reward(self, route: str | None) -> bool:
        """Whether the verifier's reward is in the loss of this route's rows."""
        return self.objective.reward_weight > 0 or super().learns_from_reward(route)

    def _loss_without_meaning(self) -> str | None:
        if self.objective.estimator != "sampled":
            return None
        return "the loss of estimator sampled is no distance and may have any sign"

    def _kl_unknown(self) -> str | None:
        for route in self.teachers:
            if self.reward_scale(route) != 1 and any(spec.server for spec in self.frozen(route).values()):
                return f"a server scores for teacher {route}, and with λ other than 1 log Z is then not known"
        return None

    def reward_scale(self, route: str) -> float:
        """The reward scale λ of one teacher."""
        own = self.teachers[route].reward_scale
        return self.objective.reward_scale if own is None else own

    def teacher_view(self, route: str) -> View:
        """How one teacher sees prompts; the student's view unless the recipe says otherwise."""
        return self.teachers[route].view or self.student.view

    def reference_of(self, route: str) -> ReferenceSection | None:
        """The reference of one teacher; None is the student's initial weights."""
        return self.teachers[route].reference or self.reference


class GrpoSampler(SamplerSection):
    """The engine that draws the student's responses, several to a prompt."""

    samples_per_prompt: Positive = 8


class GrpoOptim(OptimSection):
    """AdamW."""

    lr: float = Field(default=1e-6, gt=0, allow_inf_nan=False)


class GrpoTrain(TrainSection):
    """Size and length of the run."""

    prompts_per_step: Positive = 128


class GrpoRecipe(SampledRecipe):
    """Reinforcement learning on verifier rewards (GRPO); defaults are those of the published teachers."""

    method: Literal["grpo"]
    sampler: GrpoSampler = GrpoSampler()
    optim: GrpoOptim = GrpoOptim()
    train: GrpoTrain

    @model_validator(mode="after")
    def _rewards(self) -> Self:
        self._check_groups("method grpo")
        if self.reference is not None and self.grpo.kl_weight == 0:
            raise ValueError(
                "reference is used by grpo.kl_weight, which is 0; set a weight or leave the reference out"
            )
        return self


class SftRecipe(Recipe):
    """Supervised fine-tuning on demonstrations: the data's `response` column."""

    method: Literal["sft"]
    aggregation: Aggregation = "token-mean"

    def _kl_unknown(self) -> str | None:
        return "method sft compares with no other model"


AnyRecipe = OpdRecipe | GrpoRecipe | SftRecipe
RECIPES: Mapping[str, type[Recipe]] = {"opd": OpdRecipe, "grpo": GrpoRecipe, "sft": SftRecipe}
