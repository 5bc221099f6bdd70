"""Evaluate a trained run on held-out prompts, beside its base model. Works on any run folder.

Of a run that diverged it notes the reason and samples nothing.

python scripts/eval_run.py results/demo/runs/<run>
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gradlab.command_line import add_placement, mapping, placement, run
from gradlab.config import EvaluationConfig
from gradlab.explain import validate
from gradlab.gpu.devices import bound
from gradlab.outcome import read_config, read_outcome, write_failed_evaluation
from gradlab.staged_evaluation import fetch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="folder of a trained run, as docs/ARCHITECTURE.md lists it")
    parser.add_argument(
        "--evaluation", type=mapping, help="JSON of the evaluation (default: that of the run's config.json)"
    )
    parser.add_argument("--bases", type=Path, help="folder of the models made here (default: RUN_DIR/../../../base)")
    parser.add_argument("--work", type=Path, help="folder where a pack may have left the evaluation")
    add_placement(parser)
    arguments = parser.parse_args()
    config, outcome = read_config(arguments.run_dir), read_outcome(arguments.run_dir)
    if arguments.evaluation is not None:
        evaluation = validate(EvaluationConfig, arguments.evaluation)
        config = config.model_copy(update={"evaluation": evaluation})
    config = config.model_copy(update={"placement": placement(arguments, config.placement)})
    bases = arguments.bases or arguments.run_dir.resolve().parents[2] / "base"
    if not outcome.finished:
        write_failed_evaluation(arguments.run_dir, outcome)
        print(f"not evaluated: {arguments.run_dir.name} diverged after {outcome.steps_done} steps: {outcome.reason}")
        return
    if arguments.work and fetch(config, arguments.run_dir, arguments.work, bases):
        return

    with bound(config.placement):
        from gradlab.evaluate import evaluate  # here, so that --help and wrong arguments do not wait for torch

        evaluate(config, arguments.run_dir, bases)


if __name__ == "__main__":
    run(main)
