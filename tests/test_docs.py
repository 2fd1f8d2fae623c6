"""README.md and docs/: commands compose, Python blocks use names that exist, links work, generated pages are complete."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import sfm_lightglue
from sfm_lightglue import benchmark
from sfm_lightglue.cli import main
from sfm_lightglue.config import compose_config
from sfm_lightglue.config_files import GROUPS, choices, config_dir
from sfm_lightglue.networks.weights import WEIGHTS
from sfm_lightglue.option_files import read_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]
    + [page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts]
)
HISTORY = (ROOT / "CHANGELOG.md", ROOT / "docs" / "experiments" / "superpoint.md")
"""Pages that also name options of former versions."""
OTHER_PROGRAMS = ("colmap", "ray", "ruff", "mypy", "lint-imports", ".")
"""Commands of other programs, which are not checked."""
EXAMPLE_OPTIONS = {"features=corners", "features.step=4"}
"""Options of the plug-in in the documentation."""
ABSENT_MODULES = ("hloc",)
"""Not installed with the tests."""
MAX_WORDS = {"README.md": 1300, "docs/superpoint.md": 1150}
BLOCK = re.compile(r"(?P<mark><!-- download -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
OVERRIDE = re.compile(r"\+?[a-z_]+(\.[a-z_0-9]+)*=[^\s`]+")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    text: str
    is_marked: bool
    """True if the comment `<!-- download -->` is above the block."""

    def commands(self) -> Iterator[list[str]]:
        """The words of each shell command, without comments and variables of the environment."""
        for line in self.text.replace("\\\n", " ").splitlines():
            for command in line.split("&&"):
                words = shlex.split(command, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                    words = words[1:]
                if words:
                    yield words


def blocks(language: str) -> list[Block]:
    found = []
    for page in PAGES:
        for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
            if match["language"] == language:
                found.append(Block(page, match["text"], match["mark"] is not None))
    return found


def name_of(value: object) -> str:
    if isinstance(value, Block):
        return f"{value.page.relative_to(ROOT)}:{value.text.splitlines()[0][:60]}"
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


# --- commands ------------------------------------------------------------------------------------------------------------------


@functools.cache
def compose(overrides: tuple[str, ...], name: str = "pipeline") -> object:
    return compose_config(list(overrides), name)


@pytest.fixture
def command_names(capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The commands that the help lists."""
    main(["--help"])
    return set(re.findall(r"^ {2,4}([a-z-]+) {2,}\S", capsys.readouterr().out, re.MULTILINE))


@pytest.mark.parametrize("block", blocks("sh"), ids=name_of)
def test_every_command_is_one_that_works(block: Block, command_names: set[str]) -> None:
    downloads = False
    for words in block.commands():
        if words[:3] == ["python", "-m", "sfm_lightglue"]:
            downloads |= check_own_command(words[3:], command_names)
        elif words[:2] == ["pip", "install"]:
            check_pip(words[2:])
        elif words[:3] == ["python", "-m", "pytest"] or (words[0] == "python" and words[1].endswith(".py")):
            assert all(Path(word).exists() for word in words[1:] if "/" in word), words
        else:
            assert words[0] in OTHER_PROGRAMS or words[2] in ("sphinx", "venv"), f"{words}: a command that no test knows"
    assert downloads == block.is_marked, "<!-- download --> must be above exactly those blocks that download something"


def check_own_command(words: list[str], command_names: set[str]) -> bool:
    """Composes the configuration of a command of ours; returns whether it downloads something."""
    command, *rest = words
    assert command in command_names or command.startswith("--"), f"there is no command {command}"
    overrides = [word for word in rest if "=" in word]
    if command == "benchmark":
        overrides = [override for override in overrides if group_of(override) not in benchmark.KEYS]
    if "-m" in rest or command == "benchmark":
        overrides = [re.sub(r"^([a-z_.]+=[^,\[]+),.*", r"\1", override) for override in overrides]
    compose(tuple(overrides), "train" if command == "train" else "pipeline")
    text = " ".join(words)
    named = re.search(r"\+dataset=(\w+)", text)
    downloaded = [name for name, entry in WEIGHTS.items() if entry.research_only]
    has_files = named is not None and (ROOT / "datasets" / named[1] / "files.tsv").exists()
    return has_files or words[:2] == ["weights", "fetch"] or any(name in text for name in downloaded)


def check_pip(words: list[str]) -> None:
    extras = {extra for word in words for extra in re.findall(r"[\w-]+", (re.findall(r"\[(.*)\]", word) or [""])[0])}
    section = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.optional-dependencies]\n")[1].split("\n[")[0]
    assert extras <= set(re.findall(r"^([\w-]+) = \[", section, re.MULTILINE)), extras
    assert all(Path(word).is_file() for word in words if word.endswith(".txt"))


def inline_overrides() -> list[tuple[Path, tuple[str, ...]]]:
    """The page and the words of each text in backticks that is a list of options: `pairs=sequential pairs.loop_closure=true`."""
    found = set()
    for page in PAGES:
        prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
        for span in re.findall(r"`([^`\n]+)`", prose if page not in HISTORY else ""):
            words = span.split()
            if is_example(words):
                found.add((page, tuple(words)))
    return sorted(found)


def is_example(words: list[str]) -> bool:
    """True if all words are options without a placeholder."""
    options = [word for word in words if OVERRIDE.fullmatch(word) and group_of(word) in (*GROUPS, "training", "experiment")]
    placeholders = {word for word in words if word.endswith(("=NAME", "=CHOICE"))} | EXAMPLE_OPTIONS.intersection(words)
    return bool(words) and len(options) == len(words) and not placeholders


def group_of(override: str) -> str:
    return re.split(r"[.=]", override.lstrip("+"))[0]


@pytest.mark.parametrize(("page", "overrides"), inline_overrides(), ids=name_of)
def test_every_option_in_the_text_exists(page: Path, overrides: tuple[str, ...]) -> None:
    name = "train" if any(group_of(word) == "training" for word in overrides) else "pipeline"
    group, key = group_of(overrides[0]), re.split(r"[.=]", overrides[0])[1]
    if any(word.startswith(f"{group}=") for word in overrides):
        compose(overrides, name)
        return
    files = [config_dir() / group / f"{choice}.yaml" for choice in choices(group)]
    having = [path.stem for path in files if re.search(rf"^{key}:", path.read_text(encoding="utf-8"), re.MULTILINE)]
    is_primary = group == "dataset" or not having  # an option of no choice is refused by the composition
    compose(overrides if is_primary else (f"{group}={having[0]}", *overrides), name)


# --- Python ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", blocks("python"), ids=name_of)
def test_every_python_block_compiles_and_uses_names_that_exist(block: Block) -> None:
    tree = ast.parse(block.text)
    known = imported_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and inspect.ismodule(known.get(node.value.id)):
            assert hasattr(known[node.value.id], node.attr), ast.unparse(node)
        if isinstance(node, ast.Call):
            check_call(node, known)


def imported_names(tree: ast.Module) -> dict[str, object]:
    """What the import statements of a block bring in. Raises: ImportError if a name does not exist."""
    known: dict[str, object] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] not in ABSENT_MODULES:
            for alias in node.names:
                known[alias.asname or alias.name] = import_name(node.module, alias.name)
        elif isinstance(node, ast.Import):
            known |= {alias.asname or alias.name: importlib.import_module(alias.name) for alias in node.names}
    return known


def import_name(module: str, name: str) -> object:
    found = importlib.import_module(module)
    return getattr(found, name) if hasattr(found, name) else importlib.import_module(f"{module}.{name}")


def check_call(call: ast.Call, known: dict[str, object]) -> None:
    """Arguments given by name exist in the signature."""
    function = known.get(call.func.id) if isinstance(call.func, ast.Name) else None
    if inspect.isfunction(function):
        parameters = inspect.signature(function).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        assert takes_any or {keyword.arg for keyword in call.keywords} <= set(parameters), ast.unparse(call)


# --- pages -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)\s#]+)", text):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", MAX_WORDS)
def test_pages_that_must_be_short_are(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").split()) <= MAX_WORDS[name]


@pytest.mark.parametrize("marker", ["demo", "tests"])
def test_the_readme_s_two_commands_are_found_by_their_markers(marker: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    command = re.search(rf"<!-- {marker} -->\n```sh\n(pip install .*)\n```\n", text)
    assert command is not None


def test_the_file_tree_names_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("<!-- tree -->")[1].split("```")[1]
    named = set(re.findall(r"^  (\S+)", text, re.MULTILINE))
    package = ROOT / "sfm_lightglue"
    modules = {path.name for path in package.glob("*.py")}
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")} | {"weights/"}
    assert named == modules | folders


def test_every_page_is_in_the_contents() -> None:
    docs = ROOT / "docs"
    listed = set(re.findall(r"^[a-z_/]+$", (docs / "index.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert {str(page.relative_to(docs).with_suffix("")) for page in PAGES if docs in page.parents} == listed | {"index"}


# --- pages that the site makes ---------------------------------------------------------------------------------------------


Import = Callable[[str], ModuleType]


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch) -> Iterator[Import]:
    """Imports a module of docs/_ext."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    yield importlib.import_module
    for name in ("options_page", "api_page", "docstrings", "outside_pages"):
        sys.modules.pop(name, None)


def test_the_options_reference_has_every_key_of_every_file(extension: Import) -> None:
    text = extension("options_page").text()
    for group in (*GROUPS, "training", "experiment"):
        for path in sorted((config_dir() / group).glob("*.yaml")):
            assert (f"`{path.stem}`" if group == "dataset" else f"### {group}={path.stem}\n") in text
            keys = {} if group == "dataset" else yaml.safe_load(path.read_text(encoding="utf-8")) or {}
            assert all(f"| `{key}" in text for key in set(keys) - {"name", "defaults"}), path


def test_the_options_reference_has_types_and_options_of_all_choices(extension: Import) -> None:
    text = extension("options_page").text()
    assert "| `resize_max` | `1024` | int or null | px, longest side; null = full size." in text
    assert "| `orientation` | `auto` |" in text
    assert "| `strict` | `false` |" in text


def test_a_yaml_file_is_read_with_its_values_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("# About.\nname: some\n# Above.\nfirst: 1.5 # beside, px\nlight: # all of it\n  gamma: [1, 2] # at most\n")
    config = read_config(path)
    assert (config.about, config.name) == ("About.", "some")
    found = [(option.path, option.value, option.comment) for option in config.options]
    expected = [(("name",), "some", ""), (("first",), "1.5", "Above. beside, px"), (("light",), "", "all of it")]
    assert found == [*expected, (("light", "gamma"), "[1, 2]", "at most")]


def test_the_api_reference_has_every_public_name(extension: Import) -> None:
    text = extension("api_page").text()
    described = set(re.findall(r":: [\w.]*\.(\w+)$", text, re.MULTILINE))
    assert set(sfm_lightglue.__all__) <= described


@pytest.mark.parametrize(
    ("plain", "expected"),
    [
        ("Sizes (b, *) | of `x_`.", r"Sizes (b, \*) \| of ``x_``."),
        ("Raises: ValueError for `a`.", "**Raises:** ValueError for ``a``."),
        ("The name_ of it.", r"The name\_ of it."),
        (">>> a * b", ">>> a * b"),
    ],
)
def test_docstrings_become_restructured_text(extension: Import, plain: str, expected: str) -> None:
    lines = [plain]
    extension("docstrings").to_restructured_text(None, "function", "name", None, None, lines)
    assert lines == [expected]


def test_a_list_in_a_docstring_is_set_apart(extension: Import) -> None:
    lines = ["One of", "- a;", "- b."]
    extension("docstrings").to_restructured_text(None, "function", "name", None, None, lines)
    assert lines == ["One of", "", "- a;", "- b."]


def test_a_colon_in_returns_does_not_make_a_type(extension: Import) -> None:
    lines = ["Returns:", "    The photo as stored: no rotation,", "    no resizing.", "", "Raises:", "    ValueError: If not."]
    extension("docstrings").to_restructured_text(None, "function", "name", None, None, lines)
    assert lines[:3] == [":returns: The photo as stored: no rotation,", "    no resizing.", ""]
