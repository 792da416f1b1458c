"""What MkDocs does beyond its configuration: the reference's pages, pages that stand outside ``docs``, and links between all.

Every page is a file of the repository and links to other files of the repository by relative paths, so that it reads well
there too. On the site a link leads to the page that shows the file: a module's to its place in the reference. A link to a
file that is not there is a warning, and hence an error.
"""

from __future__ import annotations

import logging
import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
ROOMS = ("data", "models", "guides", "inference")
PACKAGE = ROOT / "build" / "package"
OUTSIDE = {"benchmarks/RESULTS.md": "results.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "how-to/method.md"}
"""File of the repository -> page of the site; notebooks keep their names."""
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
HREF = re.compile(r'href="(?![a-z]+:|#)([^"]+)"')
VERBATIM = re.compile(r"(<pre\b.*?</pre>|<script\b.*?</script>|<style\b.*?</style>)", re.S)
TEX = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.S)
FENCE = re.compile(r"(^ *```.*?^ *```)", re.M | re.S)

log = logging.getLogger("mkdocs.hooks")


@event_priority(100)  # before the plugin that looks for the package
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lay out the package as a wheel has it, for the reference, and put the reference's pages into the navigation."""
    build = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(PACKAGE)]
    subprocess.run(build, cwd=ROOT, check=True)
    for entry in config.nav or []:
        if "Reference" in entry:
            entry["Reference"] += [{".".join(package.parts): reference_uri(package)} for package in packages()]
    return config


@event_priority(100)  # before the plugin that turns notebooks into pages
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what stands outside ``docs``, and a reference page for each package."""
    for path, uri in outside().items():
        if path.endswith(".ipynb"):  # the plugin for notebooks asks for a folder that they come from
            file = File(uri, str(ROOT), config.site_dir, config.use_directory_urls)
        else:
            file = File.generated(config, uri, abs_src_path=str(ROOT / path))
        files.append(file)
    for package in packages():
        files.append(File.generated(config, reference_uri(package), content=reference_page(package)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    uri = page.file.src_uri
    path = {uri: path for path, uri in outside().items()}.get(uri, f"docs/{uri}")
    if uri.startswith("reference/") and uri != "reference/index.md":
        return markdown  # generated: has no file in the repository
    parts = FENCE.split(markdown)
    return "".join(part if FENCE.fullmatch(part) else LINK.sub(lambda found: led(found, path, uri), part) for part in parts)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The same in notebooks, whose plugin reads the file itself; and formulas, so that no script from a network draws them."""
    uri = page.file.src_uri
    if not uri.endswith(".ipynb"):
        return html
    html = HREF.sub(lambda found: f'href="{as_html(relative(found[1], uri, uri))}"', html)
    return "".join(part if VERBATIM.fullmatch(part) else TEX.sub(mathml, part) for part in VERBATIM.split(html))


def mathml(found: re.Match[str]) -> str:
    """A formula between dollars as MathML."""
    display, inline = found.groups()
    return convert(unescape(display or inline), display="block" if display else "inline")


def outside() -> dict[str, str]:
    """File of the repository -> page of the site, of all that does not stand in ``docs``."""
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    return OUTSIDE | {f"notebooks/{notebook.name}": f"notebooks/{notebook.name}" for notebook in notebooks}


def packages() -> Iterator[Path]:
    """The rooms and the packages below them, relative to the root."""
    for room in ROOMS:
        for init in sorted((ROOT / room).rglob("__init__.py")):
            yield init.parent.relative_to(ROOT)


def reference_uri(package: Path) -> str:
    """The page of a package."""
    return f"reference/{'.'.join(package.parts)}.md"


def reference_page(package: Path) -> str:
    """A page for the modules that stand in a package, with what the package says of itself."""
    name = ".".join(package.parts)
    modules = sorted(path.stem for path in (ROOT / package).glob("*.py") if path.stem != "__init__")
    blocks = [f"# {name}", f"::: sibyl.{name}\n    options: {{show_root_heading: false}}"]
    return "\n\n".join(blocks + [f"::: sibyl.{name}.{module}" for module in modules]) + "\n"


def led(link: re.Match[str], path: str, uri: str) -> str:
    """A link of the page ``uri``, shown from the file ``path``, led to a page; without a page only its text."""
    mark, text, target = link.groups()
    if re.match(r"[a-z]+:|#", target):
        return link[0]
    target = relative(target, path, uri)
    return f"{mark}[{text}]({target})" if target else text


def as_html(target: str | None) -> str:
    """A link to a page's source as one to the page."""
    return re.sub(r"\.(?:md|ipynb)(?=#|$)", ".html", target or "")


def relative(target: str, path: str, uri: str) -> str | None:
    """Where the file ``path``, shown on the page ``uri``, should link to for another file of the repository."""
    target, _, anchor = target.partition("#")
    wanted = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if not (ROOT / wanted).exists():
        log.warning("%s: no file of the repository is '%s'", path, wanted)
    page = page_of(wanted)
    if page is None:
        return None
    page, _, module = page.partition("#")
    anchor = f"{module}.{anchor}" if module and anchor else anchor or module
    return posixpath.relpath(page, posixpath.dirname(uri) or ".") + (f"#{anchor}" if anchor else "")


def page_of(path: str) -> str | None:
    """The page, with anchor, that shows a file or folder of the repository."""
    if path in outside():
        return outside()[path]
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if Path(path) in set(packages()):
        return reference_uri(Path(path))
    if path.endswith(".py") and Path(path).parent in set(packages()):
        return f"{reference_uri(Path(path).parent)}#sibyl.{path.removesuffix('.py').replace('/', '.')}"
    return None
