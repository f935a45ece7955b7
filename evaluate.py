"""Score a trained model: python evaluate.py --workdir runs/quickstart [--source F --reference F] [--json]"""

from transformer.command_line import run
from transformer.jobs import evaluate

if __name__ == "__main__":
    run(evaluate)
