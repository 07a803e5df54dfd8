"""``make test`` as on other processors: ``make processors``, or ``python tools/processors.py --help``.

oneDNN, XLA and OpenBLAS can be told to leave newer instructions alone, and a process to use fewer cores or more
threads. TensorFlow's own operations do what they do on the processor at hand, so this is no more than a rehearsal.
"""

import argparse
import functools
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from patchlib import machine, markdown

ROOT = Path(__file__).parents[1]
# What is told to the libraries, by the name of a setting.
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "XLA_FLAGS": "--xla_cpu_max_isa=AVX2", "OPENBLAS_CORETYPE": "Haswell"}
SSE4 = {"ONEDNN_MAX_CPU_ISA": "SSE41", "XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2", "OPENBLAS_CORETYPE": "Nehalem"}
FOUR = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"), "4")
ONE_CORE = "one-core"
SETTINGS = {
    "as-is": {},
    "without-oneDNN": {"TF_ENABLE_ONEDNN_OPTS": "0"},
    "AVX2": AVX2,
    "AVX2-without-oneDNN": AVX2 | {"TF_ENABLE_ONEDNN_OPTS": "0"},
    "SSE4": SSE4,
    "four-threads": FOUR,
    ONE_CORE: {},
}


def test(setting):
    """Run ``make test``: whether it's green, what pytest says at each of its ends, and all that it says."""
    bound = functools.partial(os.sched_setaffinity, 0, {0}) if setting == ONE_CORE else None
    done = subprocess.run(
        ["make", "test"],
        cwd=ROOT,
        env=os.environ | SETTINGS[setting],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=bound,
    )
    return done.returncode == 0, re.findall(r"^=* ?(\d+ .* in [\d.]+s)", done.stdout, re.M), done.stdout


def main():
    parser = argparse.ArgumentParser(description="make test as on other processors.")
    parser.add_argument("settings", nargs="*", default=list(SETTINGS), metavar="SETTING", help=", ".join(SETTINGS))
    asked, rows = parser.parse_args().settings, []
    if unknown := set(asked) - set(SETTINGS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SETTINGS)}")
    print(machine.hardware(), file=sys.stderr)
    for setting in asked:
        start = time.monotonic()
        green, ends, said = test(setting)
        rows.append([setting, "green" if green else "red", f"{time.monotonic() - start:,.0f}", *ends])
        print(*rows[-1], "" if green else said[-20_000:], sep="\n", file=sys.stderr, flush=True)
    rows = [row + [""] * (6 - len(row)) for row in rows]
    print(markdown.table(["", "make test", "seconds", "unit tests", "notebooks", "JAX"], rows))
    return any(row[1] == "red" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
