"""Convert CLIP's vocabulary out of the open-clip-torch wheel into tokenizer files, once."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from trust_engine.demo.judge import ASSETS

MERGES = 49_152 - 256 - 2  # what CLIP takes of the file; the rest is byte and special tokens
MEMBER = "open_clip/bpe_simple_vocab_16e6.txt.gz"


def byte_symbols() -> list[str]:
    """List the printable stand-ins of the 256 bytes, in CLIP's order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def main() -> None:
    """Write vocab.json and merges.txt beside the demo model."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
        subprocess.run([*command, "open-clip-torch"], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        lines = gzip.decompress(zipfile.ZipFile(wheel).read(MEMBER)).decode().split("\n")
    merges = lines[1 : 1 + MERGES]
    symbols = byte_symbols()
    words = symbols + [s + "</w>" for s in symbols] + ["".join(m.split()) for m in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    target = ASSETS / "tokenizer"
    target.mkdir(parents=True, exist_ok=True)
    (target / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (target / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")


if __name__ == "__main__":
    main()
