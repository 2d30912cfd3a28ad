"""Paper against shaped rewards, and credit per episode against credit per turn.

python runs/profiles.py --data DATA --out out/profiles --policy embedded:SFT/policy --seeds 0 1 2
"""

import tyro
from arms import Arm, Experiment, run

ARMS = (
    Arm("shaped, credit per turn"),
    Arm("shaped, credit per episode", ("--credit", "episode")),
    Arm("paper, credit per turn", ("--profile", "paper")),
    Arm("SFT", train=None),
)

if __name__ == "__main__":
    run(tyro.cli(Experiment), ARMS)
