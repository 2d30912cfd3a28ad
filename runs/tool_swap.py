"""Tool swap: the same policy with every tool (the paper's first check).

    python runs/tool_swap.py DATA --split val --out out/tool-swap --tools embedded classical sam2:PATH@512

This is `ibisagent tool-swap`; the script is here so that every table of docs/ has one.
"""

import sys

from arms import ibisagent

if __name__ == "__main__":
    ibisagent("tool-swap", *sys.argv[1:])
