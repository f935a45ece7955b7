"""Train a model: python train.py --config configs/quickstart.py --workdir runs/quickstart [--train.steps 500 ...]"""

from transformer.command_line import run
from transformer.jobs import train

if __name__ == "__main__":
    run(train, interrupted="interrupted; the same command goes on from the last checkpoint")
