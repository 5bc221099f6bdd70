"""One self-contained HTML page a sweep, and an index of all sweeps.

load.py      Parquet tables, config, provenance and sweep.json to a `Sweep`
blocks.py    what a section is made of, and the registry of sections
curves.py    the one form of every chart over steps
sections/    one file a section; adding a chart is adding one function there
page.py      sections to HTML; templates/ holds its text, style and script
index.py     results/index.html
"""

from gradlab.report.index import write_index
from gradlab.report.load import load
from gradlab.report.page import write_report

__all__ = ["load", "write_index", "write_report"]
