"""Lays out the pages of the site for mdBook, and checks the links of the site. docs/build_site.sh calls it.

Pages keep the links that work in the repository. The site has docs/ at its top and everything else under its own
path, so links are rewritten, and the files outside of docs/ that pages link to are copied.
"""

import html.parser
import json
import os
import pathlib
import re
import shutil
import sys
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# Of this folder, not of the site.
OWN = {"SUMMARY.md", "book.toml", "build_site.sh", "site_pages.py"}
LINK = re.compile(r'(\]\(|(?:src|href)=")([^)"\s]+)')


def place(path):
    """The path of a file of the repository in the site."""
    path = path.resolve()
    path = path.relative_to(DOCS) if path.is_relative_to(DOCS) else path.relative_to(ROOT)
    path = path.with_suffix(".md") if path.suffix == ".ipynb" else path
    return path.with_name("index.md") if path.name == "README.md" else path


def text_of(page):
    """The Markdown of a page; of a notebook its cells and their outputs."""
    if page.suffix != ".ipynb":
        return page.read_text()
    parts = []
    for cell in json.loads(page.read_text())["cells"]:
        source = "".join(cell["source"])
        is_code = cell["cell_type"] == "code"
        parts.append(f"```{'sh' if source.startswith('%%bash') else 'python'}\n{source}\n```" if is_code else source)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f'<img src="data:image/png;base64,{"".join(data["image/png"]).strip()}" alt="the plot of this cell">')
            else:
                parts.append("```text\n" + "".join(output.get("text") or data["text/plain"]).rstrip("\n") + "\n```")
    return "\n\n".join(parts) + "\n"


def listing(folder):
    """A page for a folder that a page links to."""
    rows = "\n".join(
        f'<li><a href="{path.name}">{path.name}</a></li>' for path in sorted(folder.iterdir()) if path.is_file()
    )
    return f"<!DOCTYPE html>\n<meta charset=utf-8>\n<title>{folder.name}</title>\n<ul>\n{rows}\n</ul>\n"


def lay_out(out):
    source = out / "src"
    shutil.copytree(DOCS, source, ignore=lambda folder, names: OWN & set(names) if folder == str(DOCS) else ())
    shutil.copy(DOCS / "book.toml", out / "book.toml")
    pages = {DOCS / "SUMMARY.md"}
    pages.update((DOCS / target).resolve() for _, target in LINK.findall((DOCS / "SUMMARY.md").read_text()))
    missing = sorted(page.name for page in DOCS.glob("*.md") if page not in pages)
    assert not missing, f"docs/SUMMARY.md lacks {missing}"
    for page in pages:

        def rewritten(found):
            before, target = found.groups()
            path, hash_, anchor = target.partition("#")
            if "://" in target or target.startswith("data:") or not path:
                return found.group()
            there = (page.parent / path).resolve()
            to = place(there)
            if there.is_dir():
                # Folders of docs/ were copied; no page links to another.
                (source / to / "index.html").write_text(listing(there))
                to = to / "index.html"
            elif there.suffix not in (".md", ".ipynb"):
                (source / to).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(there, source / to)
            else:
                assert there in pages, f"{page}: {target} is no page of the site"
            return before + os.path.relpath(to, place(page).parent) + hash_ + anchor

        target = source / place(page)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(LINK.sub(rewritten, text_of(page)))


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("href", "src") and value:
                self.links.append(value)
            if name == "id":
                self.anchors.add(value)


def check(site):
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    faults, n_links = [], 0
    for path, page in pages.items():
        # It is served for any address.
        if path.name == "404.html":
            continue
        for link in page.links:
            url = urllib.parse.urlparse(link)
            if url.scheme or url.netloc:
                continue
            n_links += 1
            there = (path.parent / urllib.parse.unquote(url.path)).resolve() if url.path else path
            anchor = urllib.parse.unquote(url.fragment)
            if not there.is_file():
                faults.append(f"{path.relative_to(site)}: {link} is not there")
            elif anchor and there in pages and anchor not in pages[there].anchors:
                faults.append(f"{path.relative_to(site)}: {link} has no such heading")
    assert n_links > 500, f"{n_links} links were looked at"
    if faults:
        sys.exit("\n".join(faults))
    print(f"{len(pages)} pages, {n_links} links")


if __name__ == "__main__":
    {"lay-out": lay_out, "check": check}[sys.argv[1]](pathlib.Path(sys.argv[2]).resolve())
