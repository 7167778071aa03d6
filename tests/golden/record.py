"""Write the golden files again, all or those named: `python -m tests.golden.record [errors.txt …]`."""

import sys
import tempfile
import time
from pathlib import Path

from tests.golden.compute import HERE, SECTIONS, workplace


def main() -> None:
    for name in sys.argv[1:] or SECTIONS:
        start = time.process_time()
        with tempfile.TemporaryDirectory() as folder, workplace(Path(folder).resolve()) as place:
            text = SECTIONS[name](place)
        (HERE / name).write_text(text, encoding="utf-8")
        print(f"{name}: {len(text):,} characters, {time.process_time() - start:.1f} s of CPU time")


if __name__ == "__main__":
    main()
