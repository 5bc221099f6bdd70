"""Train a tokenizer and a base model from scratch.

python scripts/make_base.py --config config/bases/toy.yaml --out results/base/toy
"""

from __future__ import annotations

import argparse
import os

from gradlab.command_line import run
from gradlab.config import BaseConfig
from gradlab.explain import validate
from gradlab.sweep_file import read_yaml


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file of the base, such as config/bases/toy.yaml")
    parser.add_argument("--out", required=True, help="folder of model, tokenizer and base.json")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads; the bits of the result depend on them")
    arguments = parser.parse_args()
    config = validate(BaseConfig, read_yaml(arguments.config))

    # Threads that wait by spinning take the other cores' time: seven times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded
    import torch  # here, so that --help and wrong arguments do not wait for torch

    from gradlab.pretrain import make_base

    torch.set_num_threads(arguments.threads)
    make_base(config, arguments.out)


if __name__ == "__main__":
    run(main)
