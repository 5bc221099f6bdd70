"""The files of a sweep's runs to seven tidy Parquet tables, typed and documented.

One number a row, and the run's parameters as columns, so that one `read_parquet` is enough to plot or
test anything. Null means "no signal" and stays null.
"""

from gradlab.aggregate.columns import COLUMNS, documentation
from gradlab.aggregate.tables import aggregate

__all__ = ["COLUMNS", "aggregate", "documentation"]
