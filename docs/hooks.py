"""Two hooks of MkDocs: pages from files that lie beside the code, and links that work twice.

Write every link in Markdown so that it works in the repository. Where its target is a page of the
site, or the source of one, the site links to that page. A picture is copied into the site. Any
other file of the repository is named by its path. A target that does not exist is a warning,
which `mkdocs build --strict` turns into an error.
"""

import os
import posixpath
import re
from pathlib import Path

from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
RESULTS = "benchmarks/results/amd-epyc-cpu-family"
# The files that lie beside the code, and the page that each becomes.
INCLUDED = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    f"{RESULTS}-26-model-2-avx512-bf16.md": "results-zen5.md",
    f"{RESULTS}-25-model-17-avx512-bf16.md": "results-zen4.md",
    "csrc/README.md": "kernels-cpu.md",
    "csrc/cuda/README.md": "kernels-cuda.md",
}
TITLES = {"results-zen5.md": "All CPU results, Zen 5", "results-zen4.md": "All CPU results, Zen 4"}
PICTURES = "benchmarks/results/*.png"

CODE = re.compile(r"^(?:```|~~~).*?^(?:```|~~~)|`[^`\n]+`", re.M | re.S)
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")

log = get_plugin_logger("links")


def on_files(files, config):
    """Add the included files as pages, and the pictures that they show."""
    for source, page in INCLUDED.items():
        text = (ROOT / source).read_text()
        if page in TITLES:
            text = f"# {TITLES[page]}\n\n{text}"
        files.append(File.generated(config, page, content=text))
    for picture in ROOT.glob(PICTURES):
        files.append(File.generated(config, f"figures/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown, page, **_):
    """Rewrite the links of a page, except in its code."""
    uri = page.file.src_uri
    origin = {to: source for source, to in INCLUDED.items()}.get(uri, f"docs/{uri}")

    def rewrite(match):
        text, target = match.groups()
        path, _, anchor = target.partition("#")
        if re.match(r"\w+:", target) or not path:
            return match[0]
        source = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
        to = destination(source)
        if to is not None:
            relative = os.path.relpath(to, posixpath.dirname(uri) or ".")
            return f"[{text}]({relative}{'#' * bool(anchor)}{anchor})"
        if not (ROOT / source).exists():
            log.warning(f"{origin} links to {source}, which does not exist")
        name = text.strip("`")
        return f"`{source}`" if source.endswith(name) else f"{text} (`{source}`)"

    parts, end = [], 0
    for code in CODE.finditer(markdown):
        # Code inside the text of a link belongs to the link.
        if markdown[code.start() - 1 : code.start()] == "[":
            continue
        parts += [LINK.sub(rewrite, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, LINK.sub(rewrite, markdown[end:])])


def destination(source):
    """Return the page or picture of the site that `source` becomes, or None."""
    if source in INCLUDED:
        return INCLUDED[source]
    if source.startswith("docs/") and (ROOT / source).is_file():
        return source.removeprefix("docs/")
    if Path(source).match(PICTURES):
        return f"figures/{posixpath.basename(source)}"
    return None
