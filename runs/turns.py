"""One turn against many: policies trained and measured with at most one, three and eight turns.

python runs/turns.py --data DATA --out out/turns --policy embedded:SFT/policy
"""

import tyro
from arms import Arm, Experiment, run

ARMS = (
    *(Arm(f"{n} turns", ("--max-turns", n), ("--max-turns", n)) for n in ("8", "3", "2")),
    Arm("first click only", None, ("--max-turns", "1")),
)

if __name__ == "__main__":
    run(tyro.cli(Experiment), ARMS)
