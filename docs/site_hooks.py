"""What mkdocs.yml needs beside plugins: pages that stand outside of docs/, and docstrings as they are shown."""

from __future__ import annotations

import os.path
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = ("benchmarks/**/*.md", "benchmarks/**/*.png", "benchmarks/**/*.svg", "benchmarks/**/*.json", "examples/*.*")
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "SECURITY.md", *OUTSIDE)
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add pages and pictures that have their places elsewhere in the repository, under their paths there."""
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            uri = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links are written as they hold in the repository, where docs/ is a folder; on the site it is the root."""
    here = page.file.src_uri
    folder = os.path.dirname(here if (ROOT / here).exists() else f"docs/{here}")

    def on_site(link: re.Match[str]) -> str:
        target = os.path.normpath(os.path.join(folder, link[1])).removeprefix("docs/")
        if files.get_file_from_path(target) is None:
            return link[0]
        return f"]({os.path.relpath(target, os.path.dirname(here) or '.')}"

    return LINK.sub(on_site, markdown)


class PlainDocstrings(griffe.Extension):
    """Docstrings as griffe wants them: its name for a section of examples, and names as code without a role."""

    def on_object(self, *, obj: griffe.Object, **options: Any) -> None:
        """Called by griffe for each module, class and function."""
        if obj.docstring is not None:
            text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
            obj.docstring.value = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
