"""The paper's ablation: each of the five rewards off, and all of them, under the profile `paper`.

python runs/reward_ablation.py --data DATA --out out/ablations --policy embedded:SFT/policy --seeds 0 1 2
"""

import tyro
from arms import PAPER, Arm, Experiment, run

TERMS = ("S_format", "S_ans", "S_click", "S_pseg", "S_len")
ARMS = (
    Arm("paper", PAPER),
    *(Arm(f"paper without {term}", (*PAPER, "--without", term)) for term in TERMS),
    Arm("SFT", train=None),
)

if __name__ == "__main__":
    run(tyro.cli(Experiment), ARMS, "rewards")
