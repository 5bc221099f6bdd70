"""Means of pairwise cosines over probes: what the summary and the mean heat map show."""

from __future__ import annotations

import pandas as pd

from gradlab.report.load import Sweep

Z = 1.96


def main_layer(sweep: Sweep) -> pd.DataFrame:
    """Cosines of one layer a run: `all`, else `last`, else the highest block that was probed."""
    return keep_main_layer(sweep.cosines)


def keep_main_layer(frame: pd.DataFrame) -> pd.DataFrame:
    chosen = frame.groupby("run")["layer"].agg(lambda layers: min(layers.unique(), key=_preference))
    return frame[frame["layer"] == frame["run"].map(chosen)]


def layer_order(layers: list[str]) -> list[str]:
    """Blocks in their order, the modules of a block (`3.attention`) after one another, `all` and `last` at the end."""
    return sorted(layers, key=lambda layer: (layer in ("all", "last"), max(_block(layer), 0), layer))


def _preference(layer: str) -> tuple[int, int, str]:
    return {"all": 0, "last": 1}.get(layer, 2), -_block(layer), layer


def _block(layer: str) -> int:
    """The block's index in `3` or `3.attention`; -1 in `all`."""
    head = layer.partition(".")[0]
    return int(head) if head.isdigit() else -1


def layers_text(frame: pd.DataFrame) -> str:
    """What was probed, for captions: `scope last_block, space factors, layer last`."""
    parts = [f"{key} {', '.join(map(str, frame[key].unique()))}" for key in ("scope", "space", "layer")]
    return "; ".join(parts)


def keep_level(frame: pd.DataFrame, level: str) -> pd.DataFrame:
    """Rows of `pairs` or `conflict` at a level, of the main layer of each group."""
    frame = frame[frame["level"] == level]
    if frame.empty:
        return frame
    chosen = frame.groupby("first_run")["layer"].agg(lambda layers: min(layers.unique(), key=_preference))
    return frame[frame["layer"] == frame["first_run"].map(chosen)]


def pair_means(frame: pd.DataFrame) -> pd.DataFrame:
    """Per group and pair: mean, low, high, n (defined probes), undefined, below (share below -tau), and the
    mean norms norm_i, norm_j (0: that objective never had a gradient).

    The interval is mean +- 1.96 standard errors over the probes of all seeds, taken as independent:
    each probe has fresh completions. NaN for a single probe.
    """
    keys = ["group", "objective_i", "objective_j"]
    frame = frame.assign(below=(frame["cosine"] < -frame["probe.tau"]).where(frame["cosine"].notna()).astype(float))
    grouped = frame.groupby(keys, sort=False)
    out = grouped["cosine"].agg(mean="mean", se="sem", n="count", rows="size").reset_index()
    out[["norm_i", "norm_j"]] = grouped[["norm_i", "norm_j"]].mean().to_numpy()
    out["below"] = grouped["below"].mean().to_numpy()
    out["undefined"] = out["rows"] - out["n"]
    return out.assign(low=out["mean"] - Z * out["se"], high=out["mean"] + Z * out["se"])
