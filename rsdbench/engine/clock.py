"""Phase times without stalls: the host's clock on a CPU, events in the queue on an accelerator."""

from __future__ import annotations

import time

import torch

PHASES = ("draft", "target", "verify", "commit")


class Clock:
    """Adds up the seconds of named phases. `total` is wall time with the device synchronised at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_cpu = device.type == "cpu"
        self.seconds = dict.fromkeys(PHASES, 0.0)
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

    def stop(self) -> float:
        """Total seconds; fills in the phases."""
        total = self.now() - self.start_time
        for (_, before), (phase, event) in zip(self.events, self.events[1:], strict=False):
            if phase is not None:
                self.seconds[phase] += event - before if self.on_cpu else before.elapsed_time(event) / 1e3
        self.events = []
        return total
