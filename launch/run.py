"""The entry point under torchrun: one rank of a run.

torchrun --nproc_per_node=5 launch/run.py                      # 1 server and 4 clients, no options needed
torchrun --nproc_per_node=3 launch/run.py --data kaggle-dr:PATH --image-size 128 --cut 3
"""

import sys
from pathlib import Path

# Run as a script, Python puts launch/ on the path; the packages are its parent's.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch.cli import run_rank_command  # noqa: E402

if __name__ == "__main__":
    run_rank_command()
