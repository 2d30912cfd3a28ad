"""How much the steps of the paper's rewards matter: fixed thresholds against those scaled per target.

    python runs/thresholds.py --data DATA --out out/ablations --policy embedded:SFT/policy --seeds 0 1 2

The paper's third open question; the adaptive ones are scaled by what the oracle reaches on each target.
"""

import tyro
from arms import PAPER, Arm, Experiment, run

ARMS = (Arm("paper", PAPER), Arm("paper adaptive", (*PAPER, "--adaptive")), Arm("SFT", train=None))

if __name__ == "__main__":
    run(tyro.cli(Experiment), ARMS, "thresholds")
