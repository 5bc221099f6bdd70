"""Train and evaluate several runs in one process, for their own jobs to fetch. Stopped, the same command resumes."""

from __future__ import annotations

import argparse
from pathlib import Path

from gradlab.command_line import add_placement, placement, run
from gradlab.config import EvaluationConfig
from gradlab.gpu.devices import bound
from gradlab.identity import parse
from gradlab.store import read_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", required=True, help="JSON of its runs: {run: {spec, evaluation}}")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs' work folders")
    parser.add_argument("--bases", default="results/base", help="folder of the models made here")
    add_placement(parser)
    arguments = parser.parse_args()
    configs = {}
    for name, own in read_json(arguments.plan).items():
        config, evaluation = parse(own["spec"]), EvaluationConfig.model_validate_json(own["evaluation"])
        given = {"placement": placement(arguments, config.placement), "evaluation": evaluation}
        configs[name] = config.model_copy(update=given)

    with bound(next(iter(configs.values())).placement):
        from gradlab.training import train_pack  # torch, once the GPU is chosen

        for error in train_pack(configs, arguments.work, arguments.bases):
            print(f"left to the job of its own run: {error}")


if __name__ == "__main__":
    run(main)
