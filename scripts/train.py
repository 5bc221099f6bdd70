"""Train one run into a folder of its own. Stopped anywhere, the same command resumes.

python scripts/train.py --config my_run.json --run-dir results/mine/runs/a --work work/mine/a
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gradlab.command_line import add_placement, placement, run
from gradlab.config import EvaluationConfig, RunConfig
from gradlab.explain import validate
from gradlab.gpu.devices import bound
from gradlab.identity import parse
from gradlab.staging import fetch
from gradlab.sweep_file import read_yaml


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--spec", help="specification of the run, as the workflow writes it")
    source.add_argument("--config", help="file of the run's configuration (JSON or YAML), such as a run's config.json")
    parser.add_argument("--evaluation", default="{}", help="JSON of the evaluation to note in config.json")
    parser.add_argument("--run-dir", type=Path, required=True, help="folder of the results, written at the end")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder of checkpoints; one process at a time holds it"
    )
    parser.add_argument("--bases", default="results/base", help="folder of the models made here")
    add_placement(parser)
    arguments = parser.parse_args()
    config = parse(arguments.spec) if arguments.spec else validate(RunConfig, read_yaml(arguments.config))
    config = config.model_copy(update={"placement": placement(arguments, config.placement)})
    if arguments.spec:
        config = config.model_copy(update={"evaluation": EvaluationConfig.model_validate_json(arguments.evaluation)})
    if fetch(config, arguments.run_dir, arguments.work, arguments.bases):
        return  # trained in a pack

    with bound(config.placement):
        from gradlab.training import train  # here, so that --help, wrong arguments and fetching do not wait for torch

        train(config, arguments.run_dir, arguments.work, arguments.bases)


if __name__ == "__main__":
    run(main)
