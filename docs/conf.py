"""Sphinx settings; `make docs` builds the site. The reference below docs/reference is made from the code."""

import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "llrflow"
author = "The llrflow authors"
project_copyright = author
release = version = installed("llrflow")

extensions = ["myst_parser", "sphinx_copybutton", "llrflow_docs"]
exclude_patterns = ["_build", "llrflow_docs"]
myst_heading_anchors = 4
highlight_language = "none"
smartquotes = False  # it would make one dash of the two of an option

html_theme = "furo"
html_title = f"llrflow {release}"
html_copy_source = False
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
linkcheck_timeout = 20
