"""Launch scripts are read as bash reads them; what is read otherwise is said, what cannot be read is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gopd.errors import BadInput
from gopd.verl.overrides import Overrides, read_overrides
from gopd.verl.script import Script, read_script

SCRIPTS = Path(__file__).parent / "verl"
LAUNCH = "python3 -m verl.trainer.main_ppo"
BASH = shutil.which("bash")
ARGUMENTS = ["trainer.nnodes=2", "a.b=x  y"]

# Snippets in which `LAUNCH` is the trainer; every word that bash hands to it must come out of the reading.
SNIPPETS = {
    "plain": "LAUNCH a.b=c +d.e=f ++g.h=i ~j.k",
    "continued": "LAUNCH a.b=c \\\n   d.e=f \\\n g=h",
    "continued inside a word": "LAUNCH a.b=c\\\nd",
    "comment at the end": "LAUNCH a.b=c # no d.e=f\n",
    "hash inside a word": "LAUNCH a.b=c#d e=#f",
    "quotes": "LAUNCH a=\"x y\" 'b=z  w' c='' d=\"\" \"\"",
    "quotes in the middle": "LAUNCH a='x'\"y\"z",
    "escapes": "LAUNCH a=x\\ y b=\\$HOME c=\\\\ d=\\'",
    "escapes in double quotes": 'LAUNCH a="\\$x \\"y\\" \\z \\\\ \\` \\\n w"',
    "backslash in single quotes": "LAUNCH a='x\\y\\'",
    "lists": "x=one; LAUNCH a=\"['$x','two']\" b='[\"console\",\"wandb\"]' c=[1,2]",
    "variable": "m=org/name\nLAUNCH a=$m b=${m}-x c=\"$m\" d='$m'",
    "variable with blanks": 'x="  one   two "\nLAUNCH a=$x "b=$x" $x',
    "empty variable": "x=\nLAUNCH a=$x $x \"$x\" b",
    "unset variable alone": "unset nothing_here; LAUNCH $nothing_here a=b",
    "default": "LAUNCH a=${no_such:-x} b=${no_such:-x y} \"c=${no_such:-x y}\" d=${no_such-}",
    "default of empty": "x=\nLAUNCH a=${x:-d} b=${x-d} c=${x:+d} d=${x+d}",
    "default of set": "x=v\nLAUNCH a=${x:-d} b=${x-d} c=${x:+d} d=${x+d}",
    "nested default": "y=z\nLAUNCH a=${no_such:-${nor_this:-$y}} \"b=${no_such:-\"q $y\"}\"",
    "assigning default": "LAUNCH a=${x:=made}\nLAUNCH b=$x",
    "colon assigns": ": ${x:=made}\nLAUNCH b=$x",
    "arithmetic": "n=3\nLAUNCH a=$((1024*2)) b=$(( n + $n * 2 )) c=$((-7/2)) d=$((2**10 % 1000)) e=$(((1+2)*3))",
    "arithmetic of an unset name": "LAUNCH a=$((none_such+1))",
    "export": "export m=x n='y z'\nLAUNCH a=$m \"b=$n\"",
    "several assignments": "a=1 b=2; c=$a$b\nLAUNCH x=$c",
    "assignment for the command alone": "m=x\nm=y FLAG=1 LAUNCH a=$m",
    "appending": "m=x\nm+=y\nLAUNCH a=$m",
    "array": "A=(a=1 'b=2 3'\n  # a comment\n  c=4)\nLAUNCH \"${A[@]}\" d=5",
    "array unquoted": "A=('a=1 2' b)\nLAUNCH ${A[@]} ${A[*]} \"${A[*]}\" $A",
    "array appended": "A=(a)\nA+=(b \"c d\")\nLAUNCH \"${A[@]}\"",
    "arguments": "LAUNCH a=b \"$@\"",
    "arguments unquoted": "LAUNCH a=b $@ ${@:1} $*",
    "arguments in a word": "LAUNCH \"x$@y\" \"$*\" n=$#",
    "positional": "LAUNCH a=$1 \"b=$2\" c=${3:-none}",
    "shift": "x=$1\nshift\nLAUNCH a=$x \"$@\"",
    "redirection": "LAUNCH a=b >/dev/null 2>&1 c=d",
    "pipe": "LAUNCH a=b 2>&1 | cat",
    "background": "LAUNCH a=b &\nwait",
    "and": "true && LAUNCH a=b",
    "two on a line": "LAUNCH a=b; LAUNCH c=d",
    "here-document": "cat <<EOF >/dev/null\nLAUNCH no=1 'unended\nEOF\nLAUNCH a=b",
    "skipped constructs": (
        "if [ -d /x ]; then echo hi; fi\nfor i in 1 2; do : $i; done\ncase a in b) : ;; esac\n"
        "f() { echo no; }\nfunction g { echo no; }\n(cd /)\n[[ a < b && -n c ]]\n"
        "while false; do :; done\n: $(( 1 ))\nLAUNCH a=b"
    ),
    "tilde": "x=~/rows\nLAUNCH a=$x ~/y b=~/z",
    "pattern without a match": "LAUNCH a=[xy]* b=?",
    "dollar": "LAUNCH a=$ b=\"$\" c=x$",
    "comment lines between": "# first\n\n   # second\nm=x # third\nLAUNCH a=$m",
    "substitution nobody needs": "now=$(date) old=`date`\nLAUNCH a=b",
}  # fmt: skip


def write(folder: Path, text: str) -> Path:
    """A script."""
    path = folder / "run.sh"
    path.write_text(text, encoding="utf-8")
    return path


def words(script: Script) -> list[list[str]]:
    """Of each launch."""
    return [[argument.text for argument in launch.arguments] for launch in script.launches]


def overrides_of(path: Path) -> Overrides:
    """Of the first launch."""
    return read_overrides(read_script(path, [], {}).launches[0].arguments)


def bash_words(folder: Path, path: Path, arguments: list[str]) -> list[list[str]]:
    """What bash hands to `python3`, which here writes down its arguments."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    stub, out = tools / "python3", folder / "words"
    start = "sys.argv.index('verl.trainer.main_ppo') + 1"
    code = (
        "import json, os, sys; open(os.environ['WORDS'], 'a').write(json.dumps(sys.argv["
        + start
        + ":]) + '\\n')"
    )
    stub.write_text(f'#!/bin/sh\nexec {sys.executable} -ISc "{code}" "$@"\n', encoding="utf-8")
    stub.chmod(0o755)
    environment = {"PATH": f"{tools}:/usr/bin:/bin", "HOME": "/home/someone", "WORDS": str(out)}
    assert BASH is not None
    done = subprocess.run(
        [BASH, str(path), *arguments], env=environment, cwd=folder, capture_output=True, check=False
    )
    assert out.exists(), done.stderr
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


@pytest.mark.skipif(BASH is None, reason="needs bash")
@pytest.mark.parametrize("name", SNIPPETS)
def test_words_are_those_of_bash(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, SNIPPETS[name].replace("LAUNCH", LAUNCH) + "\n")
    read = read_script(path, ARGUMENTS, {"HOME": "/home/someone"})
    assert words(read) == bash_words(tmp_path, path, ARGUMENTS)


@pytest.mark.skipif(BASH is None, reason="needs bash")
@pytest.mark.parametrize("name", ["several.sh"])
def test_words_of_whole_scripts_are_those_of_bash(name: str, tmp_path: Path) -> None:
    path = SCRIPTS / name
    assert words(read_script(path, ARGUMENTS, {})) == bash_words(tmp_path, path, ARGUMENTS)


BROKEN = {
    "comment behind the backslash": ("LAUNCH a.b=c \\ # isn't (that\n  d.e=f \\\n g.h=i", [1]),
    "blank behind the backslash": ("LAUNCH a.b=c \\ \n  d.e=f g.h=i", [1]),
    "comment between the lines": ("LAUNCH a.b=c \\\n  # why\n  d.e=f \\\n g.h=i", [3]),
    "no backslash": ("LAUNCH a.b=c\n  d.e=f \\\n g.h=i", [2]),
    "empty line": ("LAUNCH a.b=c \\\n\n  d.e=f g.h=i", [3]),
    "arguments on a line of their own": ("LAUNCH a.b=c d.e=f \\\n # why\n $@", [3]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_continuation_is_mended_and_said(name: str, tmp_path: Path) -> None:
    text, lines = BROKEN[name]
    path = write(tmp_path, text.replace("LAUNCH", LAUNCH))
    script = read_script(path, ["g.h=i"] if "$@" in text else [], {})
    assert words(script) == [["a.b=c", "d.e=f", "g.h=i"]]
    assert [warning.split(": ")[0] for warning in script.warnings] == [f"{path}:{line}" for line in lines]


@pytest.mark.skipif(BASH is None, reason="needs bash")
def test_bash_does_end_the_command_where_a_comment_stands_behind_the_backslash(tmp_path: Path) -> None:
    path = write(tmp_path, f"{LAUNCH} a.b=c \\ # the rest\n d.e=f\n")
    assert bash_words(tmp_path, path, []) == [["a.b=c", " #", "the", "rest"]]


REFUSED = {
    "nothing": ("", "no command here starts verl.trainer.main_ppo"),
    "no launch": ("ls -l\necho python3 -m verl.trainer.main_ppo a=b\n", "no launch script"),
    "another program": ("python -m verl.trainer.fsdp_sft_trainer a=b", "fsdp_sft_trainer is left aside"),
    "Python": ("import os\nprint(os)\n", "no launch script"),
    "open quote": ("LAUNCH a='b\n", ":1: ' is opened here and never closed"),
    "open construct": ("LAUNCH a=b\nif true; then\n  ls\n", ":2: `if` is opened here and never closed"),
    "in an if": ("if true; then\n  LAUNCH a=b\nfi", ":2: the launch stands in `if` of line 1"),
    "in a loop": ("for s in 1 2\ndo\n  LAUNCH a=$s\ndone", ":3: the launch stands in `for` of line 1"),
    "in a function": ("f() {\n  LAUNCH a=b\n}\nf", "the launch stands in `{` of line 1"),
    "loop variable": (
        "for s in 1 2; do :; done\nLAUNCH a=$s",
        ":2: the command needs $s: `for` on line 1 sets it",
    ),
    "conditional": (
        "if x; then\n m=1\nfi\nLAUNCH a=$m",
        "line 2 sets it, and whether it does hangs on `if` of line 1",
    ),
    "or": ("[ -n x ] || m=1\nLAUNCH a=$m", "hangs on the `||` before it"),
    "substitution": (
        "m=$(pwd)\nLAUNCH \\\n a=$m",
        ":3: the command needs $m, set on line 1 from command substitution $(…)",
    ),
    "backticks": ("LAUNCH a=`pwd`", "command substitution `…`"),
    "unset": (
        "LAUNCH \\\n a=$MODEL_PATH/x",
        ":2: the command needs $MODEL_PATH, which is set neither in the script",
    ),
    "demanded": ("LAUNCH a=${MODEL:?give it}", "$MODEL, which the script demands"),
    "cut": ("m=a/b\nLAUNCH a=${m##*/}", "${m##*/}, which is not evaluated"),
    "arithmetic": ("LAUNCH a=$((1<<3))", "$((1<<3)), which is more than"),
    "braces": ("LAUNCH a={x,y}", "brace expansion"),
    "process": ("LAUNCH <(ls)", "process substitution"),
    "no override": ("LAUNCH train", "'train' is no override; expected key=value"),
    "sweep": ("LAUNCH optim.lr=1,2", "which is a sweep"),
    "open list": ("LAUNCH 'data.train_files=[a'", "] is missing"),
    "made of others": ("LAUNCH 'trainer.project_name=${trainer.logger}-x'", "made of other keys"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_scripts_are_refused_with_place_and_mend(name: str, tmp_path: Path) -> None:
    text, message = REFUSED[name]
    path = write(tmp_path, text.replace("LAUNCH", LAUNCH))
    with pytest.raises(BadInput) as refused:
        overrides_of(path)
    assert message in str(refused.value)
    assert str(path) in str(refused.value)


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.sh"
    path.write_bytes(b"\x7fELF\xff\xfe")
    with pytest.raises(BadInput, match="expected a shell script in UTF-8"):
        read_script(path, [], {})
    with pytest.raises(BadInput, match="cannot read script"):
        read_script(tmp_path, [], {})


def test_the_environment_counts_as_in_bash(tmp_path: Path) -> None:
    path = write(tmp_path, f"{LAUNCH} a.b=$MODEL c.d=${{ROWS:-here}}")
    script = read_script(path, [], os.environ | {"MODEL": "m", "ROWS": "there"})
    assert words(script) == [["a.b=m", "c.d=there"]]
    assert script.environment == ["MODEL", "ROWS"]
