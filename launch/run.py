"""The entry point under torchrun: one rank of a run.

torchrun --nproc_per_node=5 launch/run.py                      # 1 server and 4 clients, no options needed
torchrun --nproc_per_node=3 launch/run.py --data kaggle-dr:PATH --image-size 128 --cut 3
"""

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
# Run as a script, Python puts launch/ on the path. In a checkout ``suture`` is its neighbour.
sys.path[0:1] = [str(_ROOT)] if (_ROOT / "suture").is_dir() else []

from suture.launch.rank import run_rank_command

if __name__ == "__main__":
    run_rank_command()
