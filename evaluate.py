"""Score a trained model: python evaluate.py --workdir runs/quickstart [--source F --reference F] [--json]"""

from transformer.programs import evaluate

if __name__ == "__main__":
    evaluate()
