"""Times of phases and of blocks: the host's clock on a CPU, events in the queue on an accelerator."""

from __future__ import annotations

import time

import torch

from rsdbench.decoding.generation import PHASES


class Clock:
    """Adds up the seconds of named phases, and keeps those of each block, which ends with the last phase."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_cpu = device.type == "cpu"
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.blocks: list[float] = []  # each from the end of the one before it
        self.events: list[tuple[str | None, float | torch.Event]] = []
        self.start_time = self.now()
        self.mark(None)

    def now(self) -> float:
        """Seconds, after everything queued on the device has run."""
        if not self.on_cpu:
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def mark(self, phase: str | None) -> None:
        """What ran since the last mark was `phase` (None: nothing that counts)."""
        if self.on_cpu:
            self.events.append((phase, time.perf_counter()))
        else:
            event = torch.Event(self.device.type, enable_timing=True)
            event.record(torch.accelerator.current_stream(self.device))
            self.events.append((phase, event))

    def between(self, before: float | torch.Event, event: float | torch.Event) -> float:
        """Seconds between two marks."""
        return event - before if self.on_cpu else before.elapsed_time(event) / 1e3

    def stop(self) -> float:
        """Total seconds, with the device synchronised at both ends; fills in phases and blocks."""
        total = self.now() - self.start_time
        block = self.events[0][1]
        for (_, before), (phase, event) in zip(self.events, self.events[1:], strict=False):
            if phase is not None:
                self.seconds[phase] += self.between(before, event)
            if phase == PHASES[-1]:
                self.blocks.append(self.between(block, event))
                block = event
        self.events = []
        return total
