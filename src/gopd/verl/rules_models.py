"""Which method, which models: student, teachers, reference and λ."""

from __future__ import annotations

from gopd.errors import BadInput
from gopd.verl.account import Conversion
from gopd.verl.flags import ACTOR, CHAT, LOSS, MODEL, REF

TEACHER = "teacher"
"""Route of the one teacher that the published code has without multi_teacher_distill."""
NO_COLUMN = "-"
"""A column that no row has: with one teacher the published code looks at no row's opd_teacher."""
SOLUTION_TEMPLATE = (
    "{prompt}\n\nA solution to this problem, for reference:\n{extra_info.ref_solution}\n\n"
    "Now solve the problem in your own way."
)


def is_opd(c: Conversion) -> bool:
    """Whether the loss is distillation."""
    return c.switch(LOSS + "only_reverse_kl_advantages")


def method(c: Conversion) -> None:
    """Which of the methods it is."""
    flag, estimator = LOSS + "only_reverse_kl_advantages", "algorithm.adv_estimator"
    if is_opd(c):
        c.put("method", "opd", flag)
        c.pass_over("advantages are the teachers', not an estimator's", estimator)
        return
    if c.text(estimator) != "grpo":
        raise c.bad(
            estimator,
            f"no method here is that; grpo is, and distillation by {flag}=True. Train with a critic or another "
            "baseline in verl itself",
        )
    c.put("method", "grpo", estimator)
    c.explain("method", "grpo", flag)


def student(c: Conversion) -> None:
    """The student and its adapters."""
    path = MODEL + "path"
    if not c.given(path) or not c.text(path):
        raise BadInput(f"the script names no student: {path} is missing")
    c.put("student.model", c.text(path), path)
    c.put("student.trust_remote_code", c.switch(MODEL + "trust_remote_code"), MODEL + "trust_remote_code")
    rank, alpha, modules = MODEL + "lora_rank", MODEL + "lora_alpha", MODEL + "target_modules"
    if c.integer(rank) == 0:
        c.pass_over("no adapters", rank, alpha, modules)
    else:
        c.put("student.lora.rank", c.integer(rank), rank)
        c.put("student.lora.alpha", c.number(alpha), alpha)
        c.put("student.lora.target_modules", c.get(modules), modules)
    for flag in c.settings:
        if flag.startswith(CHAT) and flag != CHAT + "enable_thinking":
            name = flag.removeprefix(CHAT)
            c.put(f"student.view.chat_template_kwargs.{name}", c.get(flag), flag)


def teachers(c: Conversion) -> None:
    """Teachers, λ and reference; the published code uses λ only where both base paths are set."""
    if not is_opd(c):
        _grpo_reference(c)
        return
    base, other = MODEL + "base_model_path", REF + "model.base_model_path"
    path, two, scale = REF + "model.path", LOSS + "multi_teacher_distill", LOSS + "lambda_vals"
    corrected = c.text(base) is not None and c.text(other) is not None
    reward_scale = c.number(scale) if corrected else 1.0
    note = "" if corrected else "the published code uses λ only where both base_model_path are set, else 1"
    if not c.given(scale) and corrected:
        c.notes.append(f"{scale} is not set: λ is its default 1, which is OPD")
    c.put("objective.reward_scale", reward_scale, scale, note=note)
    if reward_scale != c.number(scale):
        c.notes.append(f"{scale} is {c.number(scale):g} and has no effect in the published code: {note}")
    first = c.text(path) or c.text(MODEL + "path")
    if not c.given(path):
        c.notes.append(f"{path} is not set: the teacher is the student's own initial weights, as in verl")
    names = ["math", "code"] if corrected and c.switch(two) else [TEACHER]
    c.put(f"teachers.{names[0]}.model", first, path)
    if len(names) == 2:
        c.put("teachers.code.model", c.text(other), other)
        c.explain("teachers", names, two)
        c.notes.append(
            "rows go to the teacher that extra_info.opd_teacher names, math or code; here other names are an error "
            "(the published code gives them to the math teacher with λ = 1)"
        )
    else:
        if c.switch(two):
            c.notes.append(f"{two} has no effect in the published code without both base_model_path")
        c.pass_over(
            "with one teacher it only switches λ on" if corrected else "needs both base_model_path",
            two,
            other,
        )
        c.put("data.columns.route", NO_COLUMN)
    _reference(c, base, reward_scale)
    if c.switch(MODEL + "trust_remote_code"):
        for name in names:
            c.put(f"teachers.{name}.trust_remote_code", True)
    _solution(c, names)
    if first != c.text(MODEL + "path"):
        c.notes.append(
            "the published code renders the prompts for a teacher by that teacher's own chat template; here teachers "
            "see the student's prompt ids, which is the same where the templates agree. Where they do not, give the "
            "teacher a view of its own (docs/recipe.md)"
        )
    if c.integer(MODEL + "lora_rank"):
        c.notes.append(
            "with lora_rank the published code scores by the student's base in the teacher's place; here by the teacher"
        )


def _reference(c: Conversion, base: str, reward_scale: float) -> None:
    if reward_scale == 1:
        c.pass_over("λ = 1 needs no reference", base)
    elif c.text(base) == c.text(MODEL + "path"):
        c.explain("reference", None, base, note="the student's initial weights")
    else:
        c.put("reference.model", c.text(base), base)
        if c.switch(MODEL + "trust_remote_code"):
            c.put("reference.trust_remote_code", True)


def _solution(c: Conversion, names: list[str]) -> None:
    flag = "algorithm.use_ref_solution_distillation"
    if not c.given(flag) or not c.switch(flag):
        c.pass_over("no solution in the teacher's prompt", flag)
        return
    for name in names:
        c.put(f"teachers.{name}.view.template", SOLUTION_TEMPLATE, flag)
        for key in [key for key in c.keys if key.startswith("student.view.")]:
            c.put(key.replace("student", f"teachers.{name}", 1), c.keys[key])
        if c.given(CHAT + "enable_thinking"):
            c.put(f"teachers.{name}.view.enable_thinking", c.switch(CHAT + "enable_thinking"))
    c.notes.append(
        "the words around the solution in the teacher's prompt are gopd's own; those of the published code are in its "
        "ref_input_utils.py: put them into teachers.….view.template for the very same prompts"
    )


def _grpo_reference(c: Conversion) -> None:
    path = REF + "model.path"
    weight = c.number(ACTOR + "kl_loss_coef") if c.switch(ACTOR + "use_kl_loss") else 0
    if weight and c.text(path) not in (None, c.text(MODEL + "path")):
        c.put("reference.model", c.text(path), path)
    why = "belongs to distillation, which is off (only_reverse_kl_advantages)"
    c.pass_over("the student's initial weights, or not used: kl_loss_coef is 0", path)
    c.pass_over(why, REF + "model.base_model_path", MODEL + "base_model_path", LOSS + "multi_teacher_distill")
    c.pass_over(why, LOSS + "lambda_vals", "algorithm.use_ref_solution_distillation")


RULES = (method, student, teachers)
