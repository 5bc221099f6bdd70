"""The sections of the page. The order of registration is the order on the page."""

from gradlab.report.sections import summary  # isort: skip
from gradlab.report.sections import failed  # isort: skip
from gradlab.report.sections import rewards  # isort: skip
from gradlab.report.sections import cosines  # isort: skip
from gradlab.report.sections import transfer  # isort: skip
from gradlab.report.sections import evaluation  # isort: skip
from gradlab.report.sections import training  # isort: skip
from gradlab.report.sections import samples  # isort: skip
from gradlab.report.sections import runs  # isort: skip

__all__ = ["cosines", "evaluation", "failed", "rewards", "runs", "samples", "summary", "training", "transfer"]
