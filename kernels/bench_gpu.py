"""Time the kernels on this machine's GPU and leave the figures as JSON.

    python kernels/bench_gpu.py [--seconds 1.0] [--out tests/benchmarks/results]

Against gsplat (CUDA), FlexAttention, SDPA, inductor and, where installed, tiny-cuda-nn, all in one process. Writes
`<gpu>.json` with date, commit, driver and versions, what the machine does at best (a copy, products of matrices), and
a row a case, backend, rival and pass: `ratio` is the rival's time over ours. `--small` runs tiny shapes, on a CPU if
need be, to see that the script works.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import torch
from dreamkit_kernels.bench import machine
from dreamkit_kernels.bench.gpu import run_gpu


def driver() -> str | None:
    """Version of the GPU's driver, `None` where nvidia-smi does not tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return result.stdout.strip() or None


def show(rows: list[dict[str, object]]) -> None:
    """Print a case's rows as they come."""
    for row in rows:
        line = f"{row['op']}  {row['case']}  {row['backend']} {row['pass']}  {row['ms']} ms"
        share = f"  {row['share']} of {row['share_of']}" if "share" in row else ""
        print(f"{line}  {row['ratio']} x {row['against']}{share}", flush=True)


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each median")
    parser.add_argument("--out", type=Path, default=Path("tests/benchmarks/results"), help="folder of the JSON")
    parser.add_argument("--small", action="store_true", help="tiny shapes, to see that the script runs")
    chosen = parser.parse_args()
    if not torch.cuda.is_available() and not chosen.small:
        print("No CUDA device: torch finds none. Nothing was measured (--small tries the script out).", file=sys.stderr)
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = {"machine": machine() | {"driver": driver()}, **run_gpu(device, chosen.seconds, chosen.small, show)}
    name = str(result["machine"]["gpu"] or "cpu")
    file = chosen.out / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    for what, why in result["missing"].items():
        print(f"missing: {what}: {why}")
    print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
