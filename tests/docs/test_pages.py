"""README.md and docs/: commands parse, options, fields, files, links and headings exist, the README fits one screen."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest
from not_run import NOT_RUN
from pages import ALL, PAGES, PROGRAMS, ROOT, TOOLS, Command, anchors, code_spans, commands, links, steps

from transformer.__main__ import VERBS
from transformer.command_line import evaluate_options
from transformer.config import RUNS, Config, flatten

SECTIONS = ("--data.", "--decode.", "--evaluate.")
FIELDS = {name for kind in RUNS.values() for name in flatten(kind())}
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


def not_run(command: Command) -> list[tuple[str, str]]:
    """The entries of `NOT_RUN` that this command is."""
    return [(page, part) for page, part in NOT_RUN if page == command.page and part in command.text]


HELP: dict[str, set[str]] = {}


@pytest.fixture
def options_of(call):
    """`options_of("train.py")`, `options_of("translate")`: the options in the help text of a program or verb."""

    def options(name: str) -> set[str]:
        if name not in HELP:
            done = call(name, "--help") if name in PROGRAMS else call("transformer", name, "--help")
            assert done.code == 0, done.err
            HELP[name] = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", done.out))
        return HELP[name]

    return options


def test_each_entry_of_not_run_is_one_command() -> None:
    found = [entry for command in ALL for entry in not_run(command)]
    assert sorted(found) == sorted(NOT_RUN), "an entry of NOT_RUN must be a part of one command of its page"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_are_known(page: Path, call, options_of, monkeypatch) -> None:
    """Each program, option, value and config file exists; training commands give a valid config at full size."""
    monkeypatch.chdir(ROOT)
    for command in commands(page):
        for step in steps(command):
            if step.ours is None:
                assert step.words[0] in TOOLS or not_run(command), f"{command}: no test can run {step.words[0]}"
                scripts = [word for word in step.words[:2] if word.endswith(".py")]
                assert all((ROOT / script).exists() for script in scripts), f"{command}: no {scripts}"
                continue
            program, arguments = step.ours
            given = [word.split("=")[0] for word in arguments if word.startswith("--")]
            if program == "train.py":
                done = call(program, *(word for word in arguments if word != "--print-config"), "--print-config")
                assert done.code == 0, f"{command}\n{done.err}"
                continue
            if program == "transformer" and arguments[0] not in VERBS:
                assert not_run(command), f"{command}: no such verb"
                continue
            known = options_of(program if program in PROGRAMS else arguments[0])
            assert set(given) <= known, f"{command}: {set(given) - known}"
            evaluate_options(Config(), [*dotted(arguments)], "docs")  # raises for a wrong value


def dotted(arguments: list[str]) -> list[str]:
    """The options of the config's sections, with their values."""
    kept, found = False, []
    for word in arguments:
        kept = word.startswith(SECTIONS) if word.startswith("--") else kept
        found += [word] if kept else []
    return found


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_code_in_the_prose_exists(page: Path, options_of) -> None:
    """Options, config fields and paths that a page names in its sentences and tables."""
    known = set().union(*map(options_of, (*PROGRAMS, *VERBS)))
    known |= {f"--{name}" for name in FIELDS} | {"--config", "--help", "--xla_gpu_deterministic_ops"}
    names = {*FIELDS, *(name.rsplit(".", 1)[0] for name in FIELDS)}
    for span in code_spans(page):
        for option in re.findall(r"(?<![\w-])--[a-z][\w.*-]*", span):
            assert fnmatch.filter(known, option.rstrip(".")), f"{page.name}: {option} is not an option"
        field = re.fullmatch(r"(model|data|train|tune|mesh|decode|evaluate)\.[a-z_*.]+", span)
        if field and not span.endswith((".py", ".safetensors", ".tsv")):
            assert fnmatch.filter(names, span), f"{page.name}: {span} is not a field of the config"
        if re.fullmatch(r"(transformer|tests|docs|configs|benchmarks|results)/[\w./*-]*", span):
            assert list(ROOT.glob(span)), f"{page.name}: there is no {span}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    for address in links(page):
        if "://" in address:
            continue
        path, _, heading = address.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), f"{page.name}: {address}: no such file"
        if heading:
            assert heading in anchors(target), f"{page.name}: {address}: {sorted(anchors(target))}"


def test_each_page_is_linked_from_the_readme() -> None:
    linked = {address.partition("#")[0] for address in links(ROOT / "README.md")}
    assert {str(page.relative_to(ROOT)) for page in PAGES[1:]} <= linked


def test_the_readme_fits_one_screen() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 90
    (tests,) = [line for line in lines if re.fullmatch(r"    python3 -m venv .*pytest", line)]  # as .ci/run finds it
    assert tests.endswith("&& .venv/bin/python -m pytest")
    assert re.search(r"sed -n .*python3 -m venv \.\*pytest.*README\.md", (ROOT / ".ci" / "run").read_text())


def test_the_shell_knows_what_it_reads() -> None:
    """Tests the harness itself: pipes, files, variables, quotes, and what it refuses."""
    one, two = steps(Command("x.md", 1, "A=1 echo 'a | b' | python -m transformer score runs/x < in > out"))
    assert one.words == ["echo", "a | b"] and one.environment == {"A": "1"} and not one.piped
    assert two.ours == ("transformer", ["score", "runs/x"]) and (two.source, two.target, two.piped) == (
        "in",
        "out",
        True,
    )
    assert [s.words for s in steps(Command("x.md", 1, "cat a && cat b  # both"))] == [["cat", "a"], ["cat", "b"]]
    for unknown in ("cat a; cat b", "cat a &", "(cat a)", "cat a >> b", "cat a || cat b"):
        with pytest.raises(ValueError, match=r"x\.md:1: .* this shell does not know"):
            steps(Command("x.md", 1, unknown))
