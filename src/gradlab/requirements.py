"""What a weighting needs that is not always installed, checked before the first job. No torch."""

from __future__ import annotations

from importlib.util import find_spec

from gradlab.config import RunConfig

EXTRA: dict[str, tuple[str, tuple[str, ...]]] = {
    "aligned_mtl": ("torchjd", ("torchjd",)),
    "cagrad": ("torchjd[cagrad]", ("torchjd", "cvxpy", "clarabel")),
    "dualproj": ("torchjd[quadprog-projector]", ("torchjd", "qpsolvers", "quadprog")),
    "fairgrad": ("torchjd[fairgrad]", ("torchjd", "scipy")),
    "gradvac": ("torchjd", ("torchjd",)),
    "imtl_g": ("torchjd", ("torchjd",)),
    "krum": ("torchjd", ("torchjd",)),
    "mgda": ("torchjd", ("torchjd",)),
    "nash_mtl": ("torchjd[nash-mtl]", ("torchjd", "cvxpy", "ecos")),
    "pcd": ("torchjd", ("torchjd",)),
    "pcgrad": ("torchjd", ("torchjd",)),
    "random": ("torchjd", ("torchjd",)),
    "upgrad": ("torchjd[quadprog-projector]", ("torchjd", "qpsolvers", "quadprog")),
}
"""`weighting.name` to what pip installs for it and the modules that brings."""


def check_installed(config: RunConfig) -> None:
    """Raise ValueError saying how to install what the run's weighting needs and this Python lacks."""
    package, modules = EXTRA.get(config.weighting.name, ("", ()))
    if missing := [module for module in modules if find_spec(module) is None]:
        raise ValueError(
            f"weighting.name: expected {', '.join(modules)} to be installed for {config.weighting.name}; found no "
            f"{', '.join(missing)}. Install: pip install '{package}', or all weightings: pip install -e '.[surgery]'."
        )
