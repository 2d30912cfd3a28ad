"""Paper against shaped rewards, and credit per episode against credit per turn.

python runs/profiles.py --data DATA --out out/ablations --policy embedded:SFT/policy --seeds 0 1 2
"""

import tyro
from arms import PAPER, SHAPED, Arm, Experiment, run

ARMS = (
    Arm("shaped", SHAPED),
    Arm("shaped credit per episode", (*SHAPED, "--credit", "episode")),
    Arm("paper", PAPER),
    Arm("SFT", train=None),
)

if __name__ == "__main__":
    run(tyro.cli(Experiment), ARMS, "profiles")
