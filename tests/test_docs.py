"""README and guides: links lead somewhere, pages are on the site, commands have the flags that are shown."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from distil_jax.cli import COMMANDS, main
from distil_jax.config import SECTIONS, fields_of

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]


def commands(text: str) -> list[str]:
    """The lines of bash blocks that call `distil-jax`, continuation lines joined, each as it would be typed."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    called = [re.split(r"(?:^|&&|\|)\s*(?=distil-jax )", line)[1:] for line in lines]
    return [re.split(r"\s(?:&&|\||>|#)(?:\s|$)", one)[0].strip() for parts in called for one in parts]


SHOWN = sorted({(page.name, line) for page in PAGES for line in commands(page.read_text(encoding="utf-8"))})


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generated_pages", ROOT / "docs" / "generated_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_commands_are_found_in_the_pages() -> None:
    assert {shlex.split(line)[1] for _, line in SHOWN} >= {"distill", "export", "finetune", "prepare", "quickstart"}


@pytest.mark.parametrize(("page", "line"), SHOWN)
def test_a_command_has_the_flags_that_are_shown(page: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Flags are checked before the help is printed, so nothing is run."""
    _, name, *arguments = shlex.split(line)
    assert name in COMMANDS
    status = 0
    with contextlib.suppress(SystemExit):
        status = main([name, "--help", *arguments])
    assert status == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_to_files(page: Path, generated: ModuleType) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    made = {*generated.COPIES, "settings.md"} if page.parent.name == "docs" else set()
    assert [link for link in links if link and link not in made and not (page.parent / link).exists()] == []


def test_every_guide_is_on_the_site(generated: ModuleType) -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = yaml.safe_load(site)["nav"]
    listed = {page for entry in nav for value in entry.values() for page in _pages(value)}
    assert listed == {page.name for page in ROOT.glob("docs/*.md")} | {*generated.COPIES, "settings.md"}


def _pages(value: str | list[dict[str, str]]) -> list[str]:
    return [value] if isinstance(value, str) else [page for entry in value for page in entry.values()]


def test_the_reference_has_every_setting(generated: ModuleType) -> None:
    sections = generated.settings_page().split("\n## ")[1:]
    assert [text.partition("]")[0][1:] for text in sections] == [*SECTIONS]
    for text, section in zip(sections, SECTIONS.values(), strict=True):
        rows = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
        assert rows == [*fields_of(section)]
