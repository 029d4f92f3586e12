"""The report in a real browser: it draws, answers mouse and keyboard, fits a phone, runs nothing that data bring."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from browser import Browser
from gopd.report.command import write_report
from runs import lines

Tree = dict[str, Any]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def rewritten(run: Path, folder: Path, name: str, **columns: Any) -> Path:
    """A copy of a run with other values in columns of its rollouts: each is a function of the file's rows."""
    copy = Path(shutil.copytree(run, folder / name))
    for file in sorted((copy / "rollouts").glob("*.parquet")):
        table = pq.read_table(file)
        rows = table.to_pylist()
        for column, change in columns.items():
            place = table.schema.get_field_index(column)
            values = pa.array([change(row) for row in rows], table.schema.field(column).type)
            table = table.set_column(place, table.schema.field(column), values)
        pq.write_table(table, file)
    return copy


@pytest.fixture(scope="module")
def runs(three_runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Rewards and ends of every kind, so that verdicts differ."""
    folder = tmp_path_factory.mktemp("rewritten")
    rewards = {
        "reward": lambda row: [0.0, 1.0, None][row["row"] % 3],
        "finished": lambda row: row["row"] % 2 == 0,
    }
    return [rewritten(run, folder, run.name, **rewards) for run in three_runs]


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report") / "page.html"
    write_report(runs, place)
    return place


def opened(browser: Browser, page: Path, **window: Any) -> Browser:
    browser.console()
    browser.open(page, **window)
    browser.until(lambda: browser.all("#panels[data-drawn]"))
    return browser


def logged(runs: list[Path]) -> list[Tree]:
    """Training rollouts of all runs as their files have them, in the page's order."""
    found = []
    for run in runs:
        for file in sorted((run / "rollouts").glob("*.parquet")):
            found += [row | {"run": run.name} for row in pq.read_table(file).to_pylist()]
    return found


def shown_facts(browser: Browser) -> dict[str, float | None]:
    """The numbers of the token that is shown, by name; None for a dash."""
    found: dict[str, float | None] = {}
    for row in browser.all("#facts tr"):
        name, value = (row.find_element("css selector", cell).text for cell in ("th", "td"))
        found[name] = None if value == "–" else float(value.replace("−", "-").replace(",", ""))
    return found


def choose(browser: Browser, name: str, text: str) -> None:
    Select(browser.one(f"#by-{name}")).select_by_visible_text(text)


def listed(browser: Browser) -> list[str]:
    return [option.text for option in browser.all("#rollouts [role=option]")]


def key_of(row: Tree) -> tuple[str, int, str, str]:
    """A rollout as the list shows it."""
    verdict = "" if row["reward"] is None else "right" if row["reward"] > 0 else "wrong"
    return row["run"], row["step"], row["prompt"], verdict


def keys_shown(browser: Browser) -> list[tuple[str, int, str, str]]:
    found = []
    for text in listed(browser):
        words, prompt = text.replace("\n", " ").split(), text.splitlines()[-1]
        verdict = next((word for word in words if word in ("right", "wrong")), "")
        found.append((words[0], int(words[2]), prompt, verdict))
    return found


# --- curves ---------------------------------------------------------------------------------------------------------


def test_curves_are_drawn_and_the_console_is_silent(browser: Browser, page: Path) -> None:
    opened(browser, page)
    panels = browser.all("details[open] .panel")
    assert len(panels) > 10
    for panel in panels:
        marks = panel.find_elements("css selector", "svg .mark-line path")
        assert marks and all(len(mark.get_attribute("d") or "") > 20 for mark in marks)
    closed = browser.all("details.family:not([open])")
    for family in closed:
        browser.run("arguments[0].open = true", family)
    browser.until(
        lambda: all(p.find_elements("css selector", "svg .mark-line path") for p in browser.all(".panel"))
    )
    assert browser.all("svg .mark-area path")
    assert browser.console() == []


def test_the_cursor_reads_all_curves_at_its_step(browser: Browser, page: Path, runs: list[Path]) -> None:
    opened(browser, page)
    metrics = [lines(run / "metrics.jsonl") for run in runs]
    frame = next(
        p
        for p in browser.all(".panel")
        if p.find_element("css selector", "h4").text.startswith("KL to target")
    )

    def readout() -> list[str]:
        return [item.text.replace("−", "-") for item in frame.find_elements("css selector", ".readout li")]

    def expected(step: int) -> list[float]:
        values = [m[step - 1]["kl_to_target"] for m in metrics]
        return [(values[0] + values[1]) / 2, values[2]]

    def reads(step: int) -> bool:
        at, *items = readout()
        found = [float(item.split()[0]) for item in items]
        return at == f"step {step}" and np.allclose(found, expected(step), rtol=6e-3)

    frame.send_keys(Keys.HOME)
    browser.until(lambda: reads(1))
    frame.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    browser.until(lambda: reads(3))
    plot = frame.find_element("css selector", ".mark-line path")
    ActionChains(browser.driver).move_to_element_with_offset(
        plot, int(plot.size["width"] / 2) - 2, 0
    ).perform()
    browser.until(lambda: reads(6))
    other = next(p for p in browser.all(".panel") if p.text.startswith("Entropy"))
    assert "step 6" in other.text


def test_a_run_can_be_taken_out_of_the_curves(browser: Browser, page: Path) -> None:
    opened(browser, page)
    button = browser.all(".legend button")[1]
    assert button.text == "opd-seed0"
    before = len(browser.all("details[open] .mark-line path"))
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    browser.until(lambda: len(browser.all("details[open] .mark-line path")) < before)
    assert browser.console() == []


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_hovering_shows_the_numbers_of_the_parquet_file(
    browser: Browser, page: Path, runs: list[Path]
) -> None:
    opened(browser, page)
    row = logged(runs)[0]
    scale = 1.25
    tokens = browser.all("#tokens-chosen .token")
    assert len(tokens) == len(row["response_ids"])
    for place, token in enumerate(tokens):
        ActionChains(browser.driver).move_to_element(token).perform()
        facts = shown_facts(browser)
        student, teacher, reference, partition, sampler = (
            row[name][place]
            for name in (
                "student_logprobs",
                "teacher_logprobs",
                "reference_logprobs",
                "log_partition",
                "sampler_logprobs",
            )
        )
        expected = {
            "student ℓS": student,
            "teacher ℓT": teacher,
            "reference ℓR": reference,
            "target log qλ": scale * teacher + (1 - scale) * reference - partition,
            "sampler’s ℓS": sampler,
            "advantage": row["advantages"][place],
            "implicit reward λ(ℓT − ℓR)": scale * (teacher - reference),
            "student’s entropy": row["entropies"][place],
            "KL to target (one sample)": row["kls"][place],
            "teacher / student": math.exp(teacher - student),
            "teacher / reference": math.exp(teacher - reference),
            "student / sampler": math.exp(student - sampler),
        }
        assert facts.keys() == expected.keys()
        for name, value in expected.items():
            assert facts[name] == pytest.approx(value, abs=6e-5, rel=6e-3 if " / " in name else 1e-3), name


def test_at_lambda_one_the_target_is_the_teacher(browser: Browser, page: Path, runs: list[Path]) -> None:
    opened(browser, page)
    choose(browser, "run", "opd-seed0")
    facts, row = shown_facts(browser), logged(runs[2:])[0]
    assert (
        facts["target log qλ"] == facts["teacher ℓT"] == pytest.approx(row["teacher_logprobs"][0], abs=6e-5)
    )
    assert facts["implicit reward λ(ℓT − ℓR)"] is None and facts["reference ℓR"] is None


def test_without_log_z_the_target_is_called_unnormalised(
    browser: Browser, runs: list[Path], tmp_path: Path
) -> None:
    run = rewritten(runs[0], tmp_path, "served", log_partition=lambda row: None)
    write_report([run], tmp_path / "page.html")
    facts, row = shown_facts(opened(browser, tmp_path / "page.html")), logged([run])[0]
    expected = 1.25 * row["teacher_logprobs"][0] - 0.25 * row["reference_logprobs"][0]
    assert facts["target log qλ (unnormalised)"] == pytest.approx(expected, abs=1e-4)


def test_shades_say_the_sign_without_colour(browser: Browser, page: Path, runs: list[Path]) -> None:
    opened(browser, page)
    row = logged(runs)[0]
    styles = {"plus": "solid", "minus": "dotted"}
    tokens = browser.all("#tokens-chosen .token")
    signs = ["plus" if value > 0 else "minus" for value in row["advantages"]]
    assert len(set(signs)) == 2
    for token, sign, value in zip(tokens, signs, row["advantages"], strict=True):
        classes = (token.get_attribute("class") or "").split()
        if abs(value) > 0.3:
            assert sign in classes
            assert token.value_of_css_property("border-bottom-style") == styles[sign]
        assert ("plus" in classes) <= (sign == "plus") and ("minus" in classes) <= (sign == "minus")


def test_rollouts_are_sorted_and_filtered(browser: Browser, page: Path, runs: list[Path]) -> None:
    opened(browser, page)
    choose(browser, "answers", "training")
    rows = logged(runs)
    assert keys_shown(browser) == [key_of(row) for row in rows]
    rank = {0.0: 0, 1.0: 1, None: 2}
    for name, order in {
        "most positive token": lambda row: -max(row["advantages"]),
        "most negative token": lambda row: min(row["advantages"]),
        "largest mean KL to target": lambda row: -float(np.mean(np.array(row["kls"], np.float64))),
        "teacher": lambda row: row["route"],
        "verdict: wrong first": lambda row: (rank[row["reward"]], row["finished"]),
        "longest": lambda row: -len(row["response_ids"]),
    }.items():
        choose(browser, "sort", name)
        assert keys_shown(browser) == [key_of(row) for row in sorted(rows, key=order)], name
    choose(browser, "sort", "as logged")
    choose(browser, "teacher", "math")
    choose(browser, "verdict", "right")
    choose(browser, "step", "2")
    kept = [r for r in rows if r["route"] == "math" and r["reward"] == 1 and r["step"] == 2]
    assert keys_shown(browser) == [key_of(row) for row in kept]
    assert browser.one("#count").text.startswith(f"{len(kept)} of ")
    browser.one("#by-find").send_keys("no prompt has this")
    assert browser.one("#detail").text == "No rollout matches."


def test_extreme_tokens_and_the_sorted_table(browser: Browser, page: Path, runs: list[Path]) -> None:
    opened(browser, page)
    advantages = logged(runs)[0]["advantages"]
    chips = [
        [c.text for c in box.find_elements("css selector", "button")]
        for box in browser.all(".extremes > div")
    ]
    values = [[float(c.split()[-1].replace("−", "-")) for c in box] for box in chips]
    above = sorted((a for a in advantages if a > 0), reverse=True)
    below = sorted(a for a in advantages if a < 0)
    np.testing.assert_allclose(values[0], above, atol=6e-5)
    np.testing.assert_allclose(values[1], below, atol=6e-5)
    browser.all(".extremes button")[0].click()
    assert shown_facts(browser)["advantage"] == pytest.approx(max(advantages), abs=6e-5)
    browser.one("#detail summary").click()
    next(b for b in browser.all(".tokentable th button") if b.text == "advantage").click()
    order = [int(cell.text) for cell in browser.all(".tokentable tbody td:first-child")]
    assert order == [i + 1 for i in np.argsort(-np.array(advantages), kind="stable")]


def test_the_same_prompt_across_steps_and_runs(browser: Browser, page: Path, runs: list[Path]) -> None:
    opened(browser, page)
    rows = logged(runs)
    mine = sorted((r for r in rows if r["prompt"] == rows[0]["prompt"]), key=lambda r: (r["step"], r["run"]))
    articles = [a for a in browser.all("#same article") if "held-out" not in a.text]
    found = []
    for article in articles:
        words = article.text.split()
        tokens = article.find_elements("css selector", ".token")
        found.append((words[0], int(words[2]), "".join(t.get_attribute("textContent") or "" for t in tokens)))
    expected = [(r["run"], r["step"], "".join(r["tokens"]).replace("\n", "⏎\n")) for r in mine]
    assert found == expected and len({r["step"] for r in mine}) > 1 and len({r["run"] for r in mine}) == 3
    other = next(i for i, r in enumerate(mine) if r["run"] == "opd-seed0")
    token = articles[other].find_element("css selector", ".token")
    browser.run("arguments[0].scrollIntoView({inline: 'center', block: 'center'})", token)
    ActionChains(browser.driver).move_to_element(token).perform()
    assert shown_facts(browser)["advantage"] == pytest.approx(mine[other]["advantages"][0], abs=6e-5)
    assert "of opd-seed0" in browser.one("#facts").text


# --- keyboard, themes, sizes ----------------------------------------------------------------------------------------


def test_everything_is_reached_by_keyboard(browser: Browser, page: Path, runs: list[Path]) -> None:
    opened(browser, page)
    active = browser.driver.switch_to
    browser.one("#rollouts").send_keys(Keys.ARROW_DOWN)
    rows = logged(runs)
    assert browser.one("#detail .prompt").text == rows[1]["prompt"]
    selected = browser.one("#rollouts [aria-selected=true]")
    assert browser.one("#rollouts").get_attribute("aria-activedescendant") == selected.get_attribute("id")
    for _ in range(4):  # past the list's scrolling and the prompt
        active.active_element.send_keys(Keys.TAB)
        if "token" in (active.active_element.get_attribute("class") or "").split():
            break
    assert active.active_element.get_attribute("data-token") == "0"
    style = active.active_element.value_of_css_property("outline-style")
    assert style == "solid"
    active.active_element.send_keys(Keys.ARROW_RIGHT)
    active.active_element.send_keys(Keys.ARROW_RIGHT)
    assert shown_facts(browser)["student ℓS"] == pytest.approx(rows[1]["student_logprobs"][2], abs=6e-5)
    active.active_element.send_keys(Keys.END)
    last = active.active_element
    assert last.get_attribute("data-token") == str(len(rows[1]["tokens"]) - 1)
    assert "advantage" in (last.get_attribute("aria-label") or "")
    active.active_element.send_keys(Keys.SHIFT + Keys.TAB)
    active.active_element.send_keys(Keys.TAB)
    assert active.active_element.get_attribute("data-token") == last.get_attribute("data-token")


def test_arrow_keys_cross_lines(browser: Browser, runs: list[Path], tmp_path: Path) -> None:
    many = {
        name: lambda row, name=name: row[name][:1] * 400 for name in ("response_ids", "tokens", "advantages")
    }
    write_report([rewritten(runs[0], tmp_path, "long", **many)], tmp_path / "page.html")
    opened(browser, tmp_path / "page.html")
    tokens = browser.all("#tokens-chosen .token")
    tops = [token.location["y"] for token in tokens]
    start = next(i for i, top in enumerate(tops) if top > tops[0]) + 3
    browser.run("arguments[0].focus()", tokens[start])
    browser.driver.switch_to.active_element.send_keys(Keys.ARROW_UP)
    up = int(browser.driver.switch_to.active_element.get_attribute("data-token") or -1)
    assert tops[up] == tops[0] and abs(tokens[up].location["x"] - tokens[start].location["x"]) < 6


def test_dark_follows_the_system_and_the_button(browser: Browser, page: Path) -> None:
    def ground() -> int:
        return sum(
            map(
                int,
                re.findall(r"\d+", str(browser.one("body").value_of_css_property("background-color")))[:3],
            )
        )

    def line_colour() -> str | None:
        return browser.one("svg .mark-line path").get_attribute("stroke")

    opened(browser, page, dark=True)
    assert ground() < 120
    dark = line_colour()
    button = browser.one("#theme")
    assert button.text == "Light theme"
    button.click()
    assert ground() > 700 and button.text == "Dark theme"
    browser.until(lambda: line_colour() != dark)
    opened(browser, page)
    assert ground() > 700
    assert browser.console() == []


@pytest.mark.parametrize("width", [390, 768, 1024])
def test_narrow_screens_never_scroll_sideways(browser: Browser, page: Path, width: int) -> None:
    opened(browser, page, width=width, height=844)
    for family in browser.all("details"):
        browser.run("arguments[0].open = true", family)
    assert (
        browser.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    )
    outside = "return [...document.querySelectorAll('.panel, .card, .rollouts, .filters *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1).length"  # noqa: E501
    assert browser.run(outside) == 0


# --- what must not run ----------------------------------------------------------------------------------------------

HOSTILE = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1>\u202e\x1b[31m<!--"


def hostile_run(run: Path, folder: Path) -> Path:
    """A run of which everything that a run's writer chooses is an attack."""
    texts = {name: lambda row: HOSTILE for name in ("prompt", "response", "where", "data_source", "route")}
    tokens = {"tokens": lambda row: [HOSTILE for _ in row["tokens"]]}
    copy = rewritten(run, folder, "<img src=x onerror=window.pwned=1>", **texts, **tokens)
    shutil.rmtree(copy / "validation")
    hostile = json.dumps(HOSTILE)[1:-1]
    metrics = (copy / "metrics.jsonl").read_text().splitlines()
    entries = [f'{{"reward/{hostile}": 0.5, "{hostile}": 1, {line[1:]}\n' for line in metrics]
    (copy / "metrics.jsonl").write_text("".join(entries))
    validation = (copy / "validation.jsonl").read_text().replace('"sums"', f'"{hostile}"')
    (copy / "validation.jsonl").write_text(validation.replace("teacher math", hostile))
    (copy / "versions.json").write_text(f'{{"{hostile}": "{hostile}"}}')
    tree = yaml.safe_load((copy / "recipe.yaml").read_text())
    tree["student"]["view"]["system"] = tree["tracking"]["name"] = HOSTILE
    (copy / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return copy


def test_nothing_that_data_bring_is_run(browser: Browser, runs: list[Path], tmp_path: Path) -> None:
    write_report([hostile_run(runs[0], tmp_path), runs[2]], tmp_path / "page.html")
    opened(browser, tmp_path / "page.html")
    for name in ("teacher", "verdict: wrong first"):
        choose(browser, "sort", name)
    browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    browser.until(lambda: all(p.find_elements("css selector", "svg") for p in browser.all(".panel")))
    assert browser.run("return window.pwned") is None
    assert browser.console() == []
    assert browser.all("img") == [] and len(browser.all("script")) == 4
    shown = HOSTILE.replace("\u202e", "⟨U+202E⟩").replace("\x1b", "⟨U+001B⟩")
    for place in ("#detail .prompt", "#tokens-chosen .token", "#facts h3"):
        assert browser.one(place).text == shown
    for part in ("#overview", "#validation", "#recipes", "#versions", "#curves"):
        assert "</script><script>window.pwned=1</script>" in browser.one(part).text, part
    assert not {"\u202e", "\x1b"} & set((tmp_path / "page.html").read_text())


def test_the_page_refuses_scripts_that_are_not_its_own(browser: Browser, page: Path) -> None:
    opened(browser, page)
    script = "const made = document.createElement('script'); made.textContent = 'window.pwned = 1';"
    markup = "const box = document.createElement('div'); box.innerHTML = '<img src=x onerror=\"window.pwned = 1\">';"
    browser.run(f"{script} {markup} document.body.append(made, box);")
    said: list[str] = []
    browser.until(lambda: said.extend(browser.console()) or len(said) >= 2)
    assert all("Content Security Policy" in line for line in said)
    assert browser.run("return window.pwned") is None


def test_without_scripts_the_tables_are_there(page: Path, runs: list[Path], tmp_path: Path) -> None:
    browser = Browser(tmp_path / "profile", scripts=False)
    browser.open(page)
    assert browser.one("noscript").text == "Curves and tokens need JavaScript; the tables do not."
    last = lines(runs[0] / "metrics.jsonl")[-1]
    figures = browser.one("#overview table").text
    assert f"{last['kl_to_target']:#.4g}" in figures and "exopd-seed1" in figures
    assert "95% intervals" in browser.one("#validation").text
    assert not browser.one("#theme").is_displayed()
    assert not browser.all("#panels svg")
    browser.close()
