"""Tells languages apart by ear: a small TDNN in PyTorch, trained on a directory of ``<language>/<number>.wav``.

It knows nothing of caches. Its DataLoader workers read files with ``open()``, wherever they are mounted; they are
started afresh (not forked), so that they may run next to Ray.
"""

from __future__ import annotations

import copy
import gc
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from speech_corpus import RATE, is_held_out
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

BATCH = 8
_HOP, _WINDOW, _MELS = 160, 400, 40
_HEADER_BYTES = 44
_CROP_SAMPLES = 6 * RATE
_SHIFT_MELS = 2
"""How far a crop's spectrum is moved up or down: a voice from a longer or a shorter throat."""
_LEARNING_RATE = 4e-3

Sample = tuple[Tensor, int]
"""Features and language."""


@dataclass(frozen=True)
class Epoch:
    """What one pass over all files came to."""

    seconds: float
    files: int
    loss: float
    accuracy: float
    """Share of the held-out files whose language was told right."""


class SpeechFiles(Dataset[Sample]):
    """The WAV files under a directory as log-mel features. Held-out files come whole, the others as random crops."""

    def __init__(self, directory: Path) -> None:
        self.paths = sorted(directory.glob("*/*.wav"))
        self.languages = sorted({path.parent.name for path in self.paths})
        self.held_out = [is_held_out(int(path.stem)) for path in self.paths]
        self._window = torch.hann_window(_WINDOW)
        self._filters = _mel_filters()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        path = self.paths[index]
        with open(path, "rb") as file:
            data = bytearray(file.read())
        samples = torch.frombuffer(data, dtype=torch.int16, offset=_HEADER_BYTES)
        language = self.languages.index(path.parent.name)
        if self.held_out[index]:
            return self._features(samples / 32768), language
        start = random.randrange(len(samples) - _CROP_SAMPLES)
        features = self._features(samples[start : start + _CROP_SAMPLES] / 32768)
        return features.roll(random.randint(-_SHIFT_MELS, _SHIFT_MELS), dims=0), language

    def _features(self, wave: Tensor) -> Tensor:
        spectrum = torch.stft(wave, 512, _HOP, _WINDOW, self._window, return_complex=True)
        features = torch.log(self._filters @ spectrum.abs().square() + 1e-6)
        # Less the mean over time, so that loudness and a voice's average colour do not matter.
        return features - features.mean(dim=1, keepdim=True)


class EpochOrder:
    """A batch sampler: first the training files in a new random order, then the held-out ones."""

    def __init__(self, held_out: list[bool]) -> None:
        self._train = [index for index, out in enumerate(held_out) if not out]
        self._test = [index for index, out in enumerate(held_out) if out]
        self._chance = random.Random(1)
        self.train_batches = len(self._train) // BATCH
        self.idle = False
        """When set, an epoch has no batches at all."""

    def __len__(self) -> int:
        return 0 if self.idle else self.train_batches + -(-len(self._test) // BATCH)

    def __iter__(self) -> Iterator[list[int]]:
        if self.idle:
            return
        order = self._chance.sample(self._train, len(self._train))
        # The last few of the order join no batch of their own: every batch then has full statistics.
        for number in range(self.train_batches):
            yield order[number :: self.train_batches]
        for start in range(0, len(self._test), BATCH):
            yield self._test[start : start + BATCH]


class Tdnn(nn.Module):
    """Dilated convolutions over time, then mean and deviation over the whole utterance, as x-vectors have it."""

    def __init__(self, languages: int, width: int = 96) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, kernel: int, dilation: int = 1, stride: int = 1) -> nn.Sequential:
            convolution = nn.Conv1d(inputs, outputs, kernel, stride=stride, dilation=dilation, bias=False)
            return nn.Sequential(convolution, nn.BatchNorm1d(outputs), nn.ReLU())

        self.frames = nn.Sequential(
            layer(_MELS, width, 5, stride=2),
            layer(width, width, 3, dilation=2),
            layer(width, width, 3, dilation=3),
            layer(width, 2 * width, 1),
        )
        self.utterance = nn.Sequential(
            nn.Linear(4 * width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, languages)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Scores per language of a batch of features."""
        frames = self.frames(features)
        deviation = torch.sqrt(frames.var(dim=2) + 1e-5)
        return self.utterance(torch.cat([frames.mean(dim=2), deviation], dim=1))


class Training:
    """A model, its optimiser and the two reading processes, which live until ``close``."""

    def __init__(self, directory: Path, epochs: int) -> None:
        """Raises ValueError when ``directory`` has no speech in it."""
        torch.manual_seed(1)
        # Two processes read at the same time; more threads than cores make all of them slow.
        torch.set_num_threads(1)
        self._files = SpeechFiles(directory)
        self._order = EpochOrder(self._files.held_out)
        if not self._order.train_batches or not any(self._files.held_out):
            raise ValueError(f"{directory} has too few files to train and to test with")
        # One loader for both kinds of files: its two workers then start once.
        self._loader: DataLoader[Sample] | None = DataLoader(
            self._files,
            batch_sampler=self._order,
            num_workers=2,
            multiprocessing_context="forkserver",
            persistent_workers=True,
            worker_init_fn=_begin_worker,
        )
        self._model = Tdnn(len(self._files.languages))
        self._optimiser = torch.optim.AdamW(self._model.parameters(), _LEARNING_RATE, weight_decay=0.01)
        self._rate = torch.optim.lr_scheduler.OneCycleLR(
            self._optimiser, _LEARNING_RATE, total_steps=epochs * self._order.train_batches
        )

    @property
    def files(self) -> int:
        """How many files an epoch reads."""
        return len(self._files)

    def warm_up(self) -> None:
        """Start the reading processes, and take a step on noise, so that the first epoch does not wait for imports.

        No file is read.
        """
        assert self._loader is not None
        self._order.idle = True
        # The second pass waits until every worker has answered that it is ready for another epoch.
        for _ in range(2):
            list(self._loader)
        self._order.idle = False
        model = copy.deepcopy(self._model)
        model(torch.randn(BATCH, _MELS, 400)).sum().backward()
        torch.optim.AdamW(model.parameters()).step()

    def run_epoch(self, read: Callable[[int], None]) -> Epoch:
        """One pass: train, then test. ``read`` is told of files as they come."""
        assert self._loader is not None
        started = time.perf_counter()
        files, right, tested = 0, 0, 0
        losses: list[float] = []
        for number, (features, languages) in enumerate(self._loader):
            if number < self._order.train_batches:
                losses.append(self._train_on(features, languages))
            else:
                right += self._count_right(features, languages)
                tested += len(languages)
            files += len(languages)
            read(len(languages))
        return Epoch(
            seconds=time.perf_counter() - started,
            files=files,
            loss=sum(losses) / len(losses),
            accuracy=right / tested,
        )

    def close(self) -> None:
        """End the reading processes."""
        self._loader = None
        gc.collect()

    def _train_on(self, features: Tensor, languages: Tensor) -> float:
        self._model.train()
        loss = nn.functional.cross_entropy(self._model(features), languages, label_smoothing=0.05)
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        self._rate.step()
        return float(loss.item())

    @torch.no_grad()
    def _count_right(self, features: Tensor, languages: Tensor) -> int:
        self._model.eval()
        return int((self._model(features).argmax(dim=1) == languages).sum())


def _begin_worker(_: int) -> None:
    # Ctrl-C is for the program, which then ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _mel_filters() -> Tensor:
    """Triangles, evenly wide on the mel scale, over the 257 frequencies of a 512-point transform."""
    highest_mel = 2595 * torch.log10(torch.tensor(1 + RATE / 2 / 700))
    corners = 700 * (10 ** (torch.linspace(0, float(highest_mel), _MELS + 2) / 2595) - 1)
    frequencies = torch.linspace(0, RATE / 2, 257)
    rising = (frequencies - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - frequencies) / (corners[2:] - corners[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)
