"""The site, by Sphinx: its sources are Markdown and notebooks where they stand in the project, so nothing is copied."""

import inspect
from pathlib import Path

import keras
import pydantic
from docutils import nodes

import patchlib

ROOT = Path(__file__).parents[1]
MATHJAX = ROOT / ".venv-site" / "node_modules" / "mathjax" / "es5" / "tex-svg.js"

project = "patchlib"
author = copyright = "The patchlib authors"
version = release = patchlib.__version__

extensions = ["myst_nb", "sphinx.ext.autosummary", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "README"
include_patterns = [
    "docs/*.md",
    "docs/api/*.rst",
    "docs/guides/*.md",
    "notebooks/*.ipynb",
    "notebooks/tiers/README.md",
    "results/README.md",
    "results/weights/*.md",
    "tools/README.md",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
]
exclude_patterns = [".*", "runs", "site", "docs/contents.md"]

nb_execution_mode = "off"  # the stored outputs are shown; `make test` holds them against a run
nb_render_markdown_format = "gfm"  # tables
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
highlight_language = "none"  # shell commands and file trees; cells and Python blocks say what they are
templates_path = [str(Path(__file__).with_name("templates"))]  # absolute: they are looked for beside the sources

html_theme = "furo"
html_title = "patchlib"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = ["root"]
html_show_sourcelink = False
html_copy_source = False

if MATHJAX.exists():
    html_static_path.append(str(MATHJAX))
    mathjax_path = MATHJAX.name
else:
    print("npm gave no MathJax: the site's formulas need a connection to be shown.")


def setup(app):
    app.connect("source-read", _with_contents)
    app.connect("doctree-read", _with_descriptions)
    app.connect("autodoc-process-signature", _own_signature)
    app.connect("autodoc-process-docstring", _with_fields)


def _with_contents(app, document, source):
    """The README is the front page, and there the site's contents are declared."""
    if document == root_doc:
        source[0] += Path(__file__).with_name("contents.md").read_text()


def _with_descriptions(app, doctree):
    """A cell's figure is described by its section's title and the call that drew it."""
    for cell in doctree.findall(nodes.container):
        if cell.get("nb_element") != "cell_code":
            continue
        code = cell.next_node(nodes.literal_block).astext().strip().splitlines()[-1]
        for image in cell.findall(nodes.image):
            image["alt"] = f"{cell.parent.next_node(nodes.title).astext()}: {code}"


def _own_signature(app, what, name, thing, options, signature, result):
    """A layer's is that of ``__init__``, which Keras hides; a schema's fields have lines of their own."""
    if what == "class" and issubclass(thing, pydantic.BaseModel):
        return "", None
    if what == "class" and issubclass(thing, keras.Layer):
        whole = inspect.signature(thing.__init__)
        return str(whole.replace(parameters=list(whole.parameters.values())[1:])), None
    return signature, result


def _with_fields(app, what, name, thing, options, lines):
    """A schema's docstring lists the fields that it adds, with their defaults."""
    if what == "class" and issubclass(thing, pydantic.BaseModel):
        own = {name: field for name, field in thing.model_fields.items() if name in thing.__annotations__}
        told = {name: f": {field.description}" if field.description else "" for name, field in own.items()}
        lines += ["", *(f"- ``{name} = {field.default!r}``{told[name]}" for name, field in own.items()), ""]
