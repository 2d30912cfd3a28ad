"""Embedded RL: GRPO from the supervised policy, beside the same policy as it was.

    python runs/rl.py --data DATA --out out/rl --policy embedded:SFT/policy --split val

Then, once, --split test: the trainings are not repeated.
"""

import tyro
from arms import Arm, Experiment, run

ARMS = (
    Arm("SFT", train=None),
    Arm("GRPO", ("--start", "both", "--lr", "5e-5", "--least-spread", "0.02", "--save-every", "1")),
)

if __name__ == "__main__":
    run(tyro.cli(Experiment), ARMS)
