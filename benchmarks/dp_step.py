"""What a private step costs: DP step ÷ plain LoRA step on a small mixture of experts.

    python -m benchmarks.dp_step [--json] [--repeats N]

A DP step is forward, per-subject gradients, clipping and CSPRNG noise; a plain step is forward
and the batch gradient. Two plain steps are timed: ordinary autograd over the very products that
the engine does ("plain", the fastest we know, and the headline's denominator), and peft's own
layers ("peft"). Opacus with hooks and with ghost clipping stand beside the engine on a model
without experts, which is all that they support. Variants are timed in turns (A B A B) in one
process, by the CPU time of their one thread, so that other programs on the machine count little;
each figure is the median of the ratios of neighbours. Peak memory is the growth of the resident
set's high-water mark (VmHWM, Linux) over the steps of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.dp_step_variants import DENSE_VARIANTS, MIXTURE_VARIANTS, Setting

Step = Callable[[], object]
LOTS = (16, 32)
SETTINGS = [Setting("lora", 8, lot) for lot in LOTS] + [Setting("core", 16, lot) for lot in LOTS]
DENSE_SETTING = Setting("lora", 8, 32)
TARGET = 1.05
MEMORY_STEPS = 2


def time_in_turns(variants: dict[str, Step], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each variant, in turns; the first turn only warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats + 1):
        for name, step in variants.items():
            start = time.thread_time()
            step()
            seconds[name].append(time.thread_time() - start)
    return {name: times[1:] for name, times in seconds.items()}


def median_ratio(over: list[float], under: list[float]) -> float:
    """Median of the ratios of neighbours in time."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def peak_growth_bytes(family: str, variant: str, setting: Setting) -> int:
    """Peak resident growth over a few steps of one variant, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.dp_step", "--memory-of", family, variant]
    command += [setting.kind, str(setting.rank), str(setting.lot)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(answer.stdout)


def print_memory_of(family: str, variant: str, kind: str, rank: str, lot: str) -> None:
    """Child process: print the peak growth in bytes."""
    variants = MIXTURE_VARIANTS if family == "mixture" else DENSE_VARIANTS
    step = variants[variant](Setting(kind, int(rank), int(lot)))
    before_bytes = _resident_peak_bytes()
    for _ in range(MEMORY_STEPS):
        step()
    print(_resident_peak_bytes() - before_bytes)


def _resident_peak_bytes() -> int:
    """High-water mark of this program; unlike ru_maxrss it starts anew at exec."""
    status = Path("/proc/self/status").read_text()
    return next(
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")
    )


def measure(family: str, setting: Setting, repeats: int) -> list[dict[str, object]]:
    """One row per variant: seconds, and ratios of time and peak memory to the plain step."""
    makers = MIXTURE_VARIANTS if family == "mixture" else DENSE_VARIANTS
    makers = {name: make for name, make in makers.items() if setting.kind in make.kinds}
    seconds = time_in_turns({name: make(setting) for name, make in makers.items()}, repeats)
    peak_bytes = {name: peak_growth_bytes(family, name, setting) for name in makers}
    return [
        {
            "model": family,
            "adapter": f"{setting.kind} r={setting.rank}",
            "lot": setting.lot,
            "step": name,
            "cpu_seconds": round(statistics.median(seconds[name]), 4),
            "time_ratio": round(median_ratio(seconds[name], seconds["plain"]), 3),
            "peak_mb": round(peak_bytes[name] / 1e6, 1),
            "memory_ratio": round(peak_bytes[name] / peak_bytes["plain"], 3),
        }
        for name in makers
    ]


def run(repeats: int) -> dict[str, object]:
    """All rows, and the headline: the worst time ratio of the engine on the mixture."""
    rows = [row for setting in SETTINGS for row in measure("mixture", setting, repeats)]
    worst = max(float(str(row["time_ratio"])) for row in rows if row["step"] == "dp")
    rows += measure("dense", DENSE_SETTING, repeats)
    headline = {
        "metric": "DP step / plain LoRA step, worst of lots 16 and 32",
        "value": worst,
        "target": TARGET,
        "met": worst <= TARGET,
    }
    return {"rows": rows, "headline": headline}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=7, help="timed turns per variant")
    parser.add_argument("--memory-of", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # torch's remark on Opacus' hooks, once a step.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    if arguments.memory_of:
        print_memory_of(*arguments.memory_of)
        return
    result = run(arguments.repeats)
    if arguments.json:
        print(json.dumps(result))
        return
    for row in result["rows"]:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    print(json.dumps(result["headline"]))


if __name__ == "__main__":
    main()
