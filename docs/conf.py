"""Sphinx: `./dev docs` builds the pages into build/docs."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extension"))

project = "sandbox"
author = "the authors of sandbox"
copyright = f"2026, {author}"
version = release = version_of("sandbox")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated"]
exclude_patterns = ["_extension"]
nitpicky = True
smartquotes = False  # they would be copied with the commands

myst_enable_extensions = ["attrs_block", "deflist"]
myst_heading_anchors = 3

# Docstrings say `code` as Markdown does.
default_role = "code"
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 90
python_use_unqualified_type_names = True
add_module_names = False
nitpick_ignore_regex = [
    ("py:.*", r"(?!sandbox\.).*"),  # the standard library's, and type variables
    ("py:.*", r"sandbox\..*\.[A-Z]"),
    (
        "py:.*",
        r"sandbox\.(control|records|plan\.(Call|Command)|landlock\.Ruleset|.*(\._.*|HasFileno))(\..*)?",
    ),  # not public
]

html_theme = "furo"
html_title = f"sandbox {version}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1d5fae", "color-brand-content": "#1d5fae"},
    "dark_css_variables": {"color-brand-primary": "#7db7ff", "color-brand-content": "#7db7ff"},
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
