"""Train a model: python train.py --config configs/quickstart.py --workdir runs/quickstart [--train.steps 500 ...]"""

import signal

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends the process, without a traceback
    from transformer.programs import train

    train()
