"""Model folders that are damaged or made to do harm: nothing in them runs, and each is loaded whole or refused."""

from __future__ import annotations

import builtins
import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.integrations import hub_kernels

import gopd
from conftest import CHAT_TEMPLATE, MakeModel, random_model, tiny_tokenizer
from gopd import cli, views
from gopd.errors import BadInput
from gopd.frozen import weight_bytes
from gopd.merge import merge
from gopd.model import describe, load_model, load_tokenizer
from gopd.recipe_file import parse_recipe
from gopd.sections import ModelSpec, View
from gopd.types import Prompt
from runs import lines, opd_tree, sft_tree, write_recipe

CPU = torch.device("cpu")
CANARY = "import pathlib\npathlib.Path(__file__).with_name('canary').touch()\n"

Copy = Callable[[], Path]


@pytest.fixture
def folder(student_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny student, to be spoilt."""
    return Path(shutil.copytree(student_folder, tmp_path / "model"))


def load(folder: Path, role: str = "teacher x") -> None:
    load_model(ModelSpec(model=str(folder)), role, device=CPU, dtype=torch.float32)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- code -----------------------------------------------------------------------------------------------------------


class Touch:
    """Unpickled it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "data.pkl"])
def test_pickled_weights_are_refused_with_the_way_out(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Touch(folder / "canary")))
    with pytest.raises(BadInput, match=rf"teacher x: .*pickled \({name}\).*never read.*save_pretrained"):
        load(folder)
    assert not (folder / "canary").exists()


@pytest.mark.parametrize(
    "target", ["weights.bin", "../outside.safetensors", "/tmp/x.safetensors", "a/../b.safetensors"]
)
def test_an_index_names_safetensors_beside_it(folder: Path, target: str) -> None:
    names = load_file(folder / "model.safetensors").keys()
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    torch.save({"x": Touch(folder / "canary")}, folder / "weights.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, target)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match=r"teacher x: .*index\.json names"):
        load(folder)
    assert not (folder / "canary").exists()


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "[" * 10_000]
)
def test_a_damaged_index_is_named(folder: Path, content: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(BadInput, match="teacher x: "):
        load(folder)


def test_a_configuration_cannot_choose_the_file_of_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.bin")
    edit(folder / "config.json", transformers_weights="adapter_model.bin")
    with pytest.raises(BadInput, match=r"teacher x: .*adapter_model\.bin. as its weights"):
        load(folder)


@pytest.mark.parametrize("known", [True, False])
def test_code_in_a_models_folder_never_runs_by_itself(
    folder: Path, tmp_path: Path, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where somebody would answer Transformers' question with yes."""
    asked = []
    monkeypatch.setattr(builtins, "input", lambda *words: asked.append(words) or "y")
    (folder / "canary.py").write_text(CANARY)
    classes = {name: f"canary.{name}" for name in ("AutoConfig", "AutoModelForCausalLM")}
    edit(folder / "config.json", auto_map=classes, **({} if known else {"model_type": "unheard"}))
    tokenizer = {"AutoTokenizer": ["canary.Tokenizer", "canary.Tokenizer"]}
    edit(
        folder / "tokenizer_config.json",
        auto_map=tokenizer,
        **({} if known else {"tokenizer_class": "Unheard"}),
    )
    spec = ModelSpec(model=str(folder))
    uses: list[Callable[[], object]] = [
        lambda: load(folder),
        lambda: describe(spec, "student"),
        lambda: load_tokenizer(spec, "student"),
        lambda: weight_bytes(spec, "student", torch.float32),
        lambda: merge([str(folder), str(folder)], tmp_path / "merged"),
    ]
    for use in uses:
        try:
            use()
        except BadInput as error:
            assert not known and "custom code" in str(error)  # noqa: PT017
    assert not asked and not list(tmp_path.rglob("canary"))


def test_a_configuration_cannot_bring_kernels_from_the_hub(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers loads what `_attn_implementation` names, as `owner/kernels`, without asking."""
    fetched: list[object] = []
    for name in ("load_and_register_attn_kernel", "get_kernel"):
        monkeypatch.setattr(hub_kernels, name, lambda *a, **k: fetched.append(a))
    edit(folder / "config.json", _attn_implementation="evil/kernels", attn_implementation="evil/kernels")
    load(folder)
    assert weight_bytes(ModelSpec(model=str(folder)), "student", torch.float32) > 0
    assert fetched == []


TEMPLATES = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a helper": "{{ lipsum.__globals__ }}",
    "os by a helper": "{{ cycler.__init__.__globals__.os.system('touch canary') }}",
    "os by a function": "{{ raise_exception.__globals__['__builtins__'].open('canary', 'w') }}",
    "os by itself": "{{ self.__init__.__globals__.__builtins__.open('canary', 'w') }}",
    "os by a filter": "{{ (messages|attr('__class__'))() }}",
    "os by format": "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "changed messages": "{{ messages.append(1) }}",
    "files": "{% include '/etc/passwd' %}",
    "modules": "{% import 'os' as os %}{{ os }}",
    "a long range": "{% for i in range(10**9) %}x{% endfor %}",
    "a long string": "{{ 'a' * 10**15 }}",
    "a longer string": "{{ 'a' * 10**19 }}",
    "division by zero": "{{ 1 / 0 }}",
    "brackets": "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}",
    "half a template": "{% if",
    "nothing": "{# nothing #}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates_stay_in_their_sandbox(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATES[name]
    row = Prompt(0, "rows.jsonl:7", ({"role": "user", "content": "hi"},), "", "none", None, None, None, {})
    with pytest.raises(BadInput, match=r"rows\.jsonl:7: the chat template"):
        views.render(View(), [row], tokenizer)
    assert not (tmp_path / "canary").exists()


# --- damage ---------------------------------------------------------------------------------------------------------

CONFIGS: list[dict[str, Any]] = [
    {"hidden_size": "x"},
    {"hidden_size": -1},
    {"num_attention_heads": 0},
    {"head_dim": 7},
    {"rope_parameters": {"rope_type": "none such"}},
    {"dtype": "none_such"},
    {"hidden_act": "none such"},
    {"eos_token_id": [["x"]]},
    {"max_position_embeddings": None},
    {"model_type": 3},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("change", CONFIGS, ids=lambda change: str(change)[:40])
def test_configurations_that_cannot_be_are_refused(folder: Path, change: dict[str, Any]) -> None:
    edit(folder / "config.json", **change)
    with pytest.raises(BadInput, match="teacher x: "):
        load(folder)


LARGE_SIZES: list[dict[str, Any]] = [
    {"hidden_size": 10**7},
    {"vocab_size": 10**12},
    {"intermediate_size": 10**9},
    {"num_hidden_layers": 10_000, "layer_types": None},
    {"num_attention_heads": 10**7},
]


@pytest.mark.parametrize("change", LARGE_SIZES, ids=str)
def test_sizes_beyond_the_weights_are_refused_before_they_take_memory(
    folder: Path, change: dict[str, Any]
) -> None:
    edit(folder / "config.json", **change)
    with pytest.raises(BadInput, match=r"teacher x: .*config\.json asks for"):
        load(folder)


FILES = [
    ("config.json", "[" * 100_000),
    ("config.json", "null"),
    ("config.json", "\0"),
    ("tokenizer.json", "{}"),
    ("tokenizer.json", "[" * 10_000),
    ("tokenizer_config.json", "[]"),
    ("tokenizer_config.json", '{"eos_token": 3}'),
    ("tokenizer_config.json", '{"tokenizer_class": 3}'),
    ("generation_config.json", "[]"),
    ("generation_config.json", "{"),
]


@pytest.mark.parametrize(("name", "content"), FILES, ids=lambda value: value[:22])
def test_files_that_are_not_what_they_should_be_are_refused(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(BadInput, match="student: cannot load model"):
        describe(ModelSpec(model=str(folder)), "student")
    with pytest.raises(BadInput, match="teacher x: cannot load model"):
        load(folder)


def headers(raw: bytes) -> dict[str, bytes]:
    """Weights whose header lies."""
    size = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    first, second, *_ = (name for name in header if name != "__metadata__")

    def with_first(**changes: Any) -> bytes:
        text = json.dumps(header | {first: header[first] | changes}).encode()
        return struct.pack("<Q", len(text)) + text + data

    return {
        "long": struct.pack("<Q", 2**63) + raw[8:],
        "a byte longer": struct.pack("<Q", size + 1) + raw[8:],
        "short": raw[:4],
        "empty": b"",
        "cut": raw[: len(raw) // 2],
        "overlapping": with_first(data_offsets=header[second]["data_offsets"]),
        "outside": with_first(data_offsets=[len(data), len(data) + 8]),
        "backwards": with_first(data_offsets=[8, 0]),
        "wider type": with_first(dtype="F64"),
        "whole numbers": with_first(dtype="I32"),
        "unknown type": with_first(dtype="X9"),
        "shape beyond counting": with_first(shape=[2**62, 8]),
        "negative shape": with_first(shape=[-1]),
    }


HEADERS = [
    "long",
    "a byte longer",
    "short",
    "empty",
    "cut",
    "overlapping",
    "outside",
    "backwards",
    "wider type",
]
HEADERS += ["whole numbers", "unknown type", "shape beyond counting", "negative shape"]


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_lie_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    path = folder / "model.safetensors"
    whole = Path(shutil.copytree(folder, tmp_path / "whole"))
    path.write_bytes(headers(path.read_bytes())[name])
    with pytest.raises(BadInput, match="teacher x: "):
        load(folder)
    if name != "whole numbers":
        with pytest.raises(BadInput, match="model"):
            merge([str(whole), str(folder)], tmp_path / "merged")
        assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("name", ["~nobody-here/model", "x" * 5000, "a\0b", "a\nb/c", "/" + "y" * 300])
def test_names_of_models_that_are_no_names(name: str) -> None:
    with pytest.raises(BadInput, match="teacher x: "):
        load_model(ModelSpec(model=name), "teacher x", device=CPU, dtype=torch.float32)


def test_patterns_that_take_for_ever_end_in_a_message(tmp_path: Path) -> None:
    """Oniguruma gives up after some millions of steps, and the tokenizer's native code panics."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    tokenizer.save_pretrained(tmp_path)
    slow = load_tokenizer(ModelSpec(model=str(tmp_path)), "student")
    assert views.encode(slow, ["aa!"]) == [slow.convert_tokens_to_ids([*"aa!"])]
    with pytest.raises(BadInput, match=r"tokenizer breaks down.*pattern"):
        views.encode(slow, ["a" * 40 + "!"])


# --- numbers and sizes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_teacher_with_a_bad_number_is_refused_or_stops_the_run_at_the_first_score(
    make_model: MakeModel, tmp_path: Path, value: float, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = make_model(1, "llama")
    path = bad / "model.safetensors"
    weights = load_file(path)
    weights["model.embed_tokens.weight"][tiny_tokenizer().convert_tokens_to_ids("+")] = (
        value  # not in the self-test
    )
    save_file(weights, path, metadata={"format": "pt"})
    recipe = write_recipe(tmp_path / "r.yaml", opd_tree(tmp_path, make_model(0, "llama"), {"a": bad}))
    assert cli.main(["train", str(recipe)]) == 1
    message = capfd.readouterr().err
    assert "at step 1" in message and "nan" in message and "Traceback" not in message
    weights["model.norm.weight"][0] = value
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"teacher x .*not finite"):
        load(bad)


def whole_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of so many tokens: the end, and one a character."""
    ending = "</s>"
    vocabulary = {ending: 0} | {chr(0x20 + n) if n < 0xD000 else f"token{n}": n for n in range(1, size)}
    core = Tokenizer(models.BPE(vocabulary, [], fuse_unk=False))
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(ending, special=True, normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=ending, pad_token=ending)
    tokenizer.chat_template = CHAT_TEMPLATE if size > 1000 else "{% for m in messages %}!{% endfor %}"
    return tokenizer


LARGE = pytest.param(262_144, "sampled", marks=pytest.mark.nightly)


@pytest.mark.parametrize(("size", "estimator"), [(2, "full"), (2, "topk"), (262_144, "sft"), LARGE])
def test_vocabularies_of_two_and_of_a_quarter_of_a_million_train_a_step(
    tmp_path: Path, size: int, estimator: str
) -> None:
    sizes: dict[str, Any] = {"vocab_size": size, "hidden_size": 16, "eos_token_id": 0, "pad_token_id": 0}
    for seed in range(1 if estimator == "sft" else 2):
        model = random_model(seed, **sizes)
        model.generation_config.eos_token_id = model.generation_config.pad_token_id = 0
        model.save_pretrained(tmp_path / f"model{seed}")
        whole_tokenizer(size).save_pretrained(tmp_path / f"model{seed}")
    train = {"steps": 1, "prompts_per_step": 2}
    if estimator == "sft":
        tree = sft_tree(tmp_path, tmp_path / "model0", train=train)
    else:
        objective = {"estimator": estimator, "reward_scale": 1.25}
        teachers = {"a": tmp_path / "model1"}
        tree = opd_tree(tmp_path, tmp_path / "model0", teachers, train=train, objective=objective)
    run = gopd.train(parse_recipe(tree))
    (entry,) = lines(run / "metrics.jsonl")
    assert isinstance(entry["loss"], float) and entry["grad_norm"] > 0
