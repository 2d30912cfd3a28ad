"""Paper against shaped rewards, and credit per episode against credit per turn.

python runs/profiles.py --data DATA --out out/profiles --policy embedded:SFT/policy --seeds 0 1 2
"""

import tyro
from arms import Arm, Experiment, run

COMMON = ("--lr", "5e-5", "--save-every", "1")
ARMS = (
    Arm("shaped", COMMON),
    Arm("shaped, credit per turn", (*COMMON, "--credit", "turn")),
    Arm("paper", (*COMMON, "--profile", "paper")),
    Arm("SFT", train=None),
)

if __name__ == "__main__":
    run(tyro.cli(Experiment), ARMS)
