"""The machine that something is measured on."""

import platform
from pathlib import Path


def processor() -> str:
    """Name of the machine's CPU."""
    info = Path('/proc/cpuinfo')  # Linux has it
    for line in info.read_text().splitlines() if info.is_file() else []:
        if line.startswith('model name'):
            return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()
