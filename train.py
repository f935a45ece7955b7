"""Train a model: python train.py --config configs/quickstart.py --workdir runs/quickstart [--train.steps 500 ...]"""

from transformer.programs import train

if __name__ == "__main__":
    train()
