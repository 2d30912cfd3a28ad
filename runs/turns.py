"""One turn against many: trained with at most eight, three and two, and measured so (eight: 20).

python runs/turns.py --data DATA --out out/ablations --policy embedded:SFT/policy
"""

import tyro
from arms import SHAPED, Arm, Experiment, run

ARMS = (
    Arm("shaped", SHAPED),
    *(Arm(f"shaped {n} turns", (*SHAPED, "--max-turns", n), ("--max-turns", n)) for n in ("3", "2")),
    Arm("first click only", None, ("--max-turns", "1")),
    Arm("SFT", train=None),
)

if __name__ == "__main__":
    run(tyro.cli(Experiment), ARMS, "turns")
