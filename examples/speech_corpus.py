"""Makes the speech corpus of the quick start: WAV files of 300 KiB each, spoken by espeak-ng.

One directory per language, files ``<number>.wav``, 16 kHz mono 16 bit. What a file holds follows from its language and
number alone. Its speaker is ``number % len(SPEAKERS)``; the last three speakers are held out for testing, 15 % of the
files, and read sentences that no other speaker reads. So the test asks for the language, in voices and words that
training never had.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

TEXTS = Path(__file__).with_name("speech")
LANGUAGES = ("de", "en", "es", "fr", "it", "pl", "pt", "sv")
# Variants of espeak-ng's voices: other formants, breath and pitch, for every language alike.
SPEAKERS = (
    "m1", "m2", "m3", "m5", "m7", "m8", "f1", "f2", "f3", "f5", "Andy", "Annie", "Lee", "Mario", "belinda", "max",
    "steph", "linda", "m4", "Michael",
)  # fmt: skip
HELD_OUT_SPEAKERS = 3
HELD_OUT_SENTENCES = 8

FILE_BYTES = 300 * 1024
RATE = 16_000
_ESPEAK_RATE = 22_050
_HEADER_BYTES = 44
_SAMPLES = (FILE_BYTES - _HEADER_BYTES) // 2
# 22,050 : 16,000 is 441 : 320, so 480 * 441 samples become 480 * 320, which is 9.6 s.
_SPOKEN_SAMPLES, _RESAMPLED = 480 * 441, 480 * 320

Samples = npt.NDArray[np.int16]


class EspeakMissing(Exception):
    """The speech synthesiser is not installed."""


def is_held_out(number: int) -> bool:
    """Whether file ``number`` of each language is for testing."""
    return number % len(SPEAKERS) >= len(SPEAKERS) - HELD_OUT_SPEAKERS


def make_corpus(directory: Path, files_per_language: int, made: Callable[[int, int], None]) -> list[Path]:
    """The corpus' files, made now where they are not there yet. ``made`` is told files done and files in all.

    Raises EspeakMissing when there is something to make and nothing to make it with, FileExistsError when
    ``directory`` is in use for something else.
    """
    _drop_another_recipe(directory)
    wanted = [
        (directory / language / f"{number}.wav", language, number)
        for number in range(files_per_language)
        for language in LANGUAGES
    ]
    missing = [job for job in wanted if not job[0].exists()]
    made(len(wanted) - len(missing), len(wanted))
    if missing and shutil.which("espeak-ng") is None:
        raise EspeakMissing("espeak-ng is not installed: sudo apt install espeak-ng")
    # Threads suffice: espeak-ng is a process of its own, and numpy's transforms let go of the GIL.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = [pool.submit(_make_file, *job) for job in missing]
        try:
            for count, future in enumerate(futures, 1):
                future.result()
                made(len(wanted) - len(missing) + count, len(wanted))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [path for path, _, _ in wanted]


def _drop_another_recipe(directory: Path) -> None:
    """Delete what other texts or another version of this file made."""
    parts = [Path(__file__), *sorted(TEXTS.glob("*.txt"))]
    recipe = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
    stamp = directory / "recipe"
    if stamp.exists() and stamp.read_text() == recipe:
        return
    if not stamp.exists() and directory.exists() and any(directory.iterdir()):
        raise FileExistsError(f"{directory} holds files that are not this demo's: choose another --out")
    for language in LANGUAGES:
        shutil.rmtree(directory / language, ignore_errors=True)
        (directory / language).mkdir(parents=True)
    stamp.write_text(recipe)


def _make_file(path: Path, language: str, number: int) -> None:
    chance = random.Random(f"{language}/{number}")
    samples = _speech(language, SPEAKERS[number % len(SPEAKERS)], is_held_out(number), chance)
    unfinished = path.with_suffix(".part")
    unfinished.write_bytes(_wav_header() + _resample(samples)[:_SAMPLES].tobytes())
    unfinished.rename(path)


def _speech(language: str, speaker: str, held_out: bool, chance: random.Random) -> Samples:
    """9.6 s of sentences in a random order, at a random speed, pitch and loudness."""
    options = [f"-v{language}+{speaker}"]
    options += [f"-s{chance.randint(135, 190)}", f"-p{chance.randint(35, 65)}", f"-a{chance.randint(45, 85)}"]
    pieces: list[Samples] = []
    for sentence in _sentences(language, held_out, chance):
        spoken = subprocess.run(["espeak-ng", *options, "--stdout", sentence], check=True, capture_output=True).stdout
        pieces.append(np.frombuffer(spoken[_HEADER_BYTES:], np.int16))
        if sum(map(len, pieces)) >= _SPOKEN_SAMPLES:
            break
    return np.concatenate(pieces)[:_SPOKEN_SAMPLES]


def _sentences(language: str, held_out: bool, chance: random.Random) -> Iterator[str]:
    lines = (TEXTS / f"{language}.txt").read_text(encoding="utf-8").splitlines()
    chosen = lines[-HELD_OUT_SENTENCES:] if held_out else lines[:-HELD_OUT_SENTENCES]
    while True:
        yield from chance.sample(chosen, len(chosen))


def _resample(samples: Samples) -> Samples:
    """22,050 Hz to 16,000 Hz: cut the spectrum, with a soft edge so that nothing rings."""
    spectrum = np.fft.rfft(samples)[: _RESAMPLED // 2 + 1]
    edge = len(spectrum) // 20
    spectrum[-edge:] *= 0.5 + 0.5 * np.cos(np.linspace(0, np.pi, edge))
    slower = np.fft.irfft(spectrum, _RESAMPLED) * (_RESAMPLED / _SPOKEN_SAMPLES)
    return np.clip(np.round(slower), -32768, 32767).astype(np.int16)


def _wav_header() -> bytes:
    size = _SAMPLES * 2
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, RATE * 2, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE") + form + struct.pack("<4sI", b"data", size)
