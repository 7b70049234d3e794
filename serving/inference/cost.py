"""How long a batch of n rows takes, learned while serving: S(n) = a·n + b.

Used for admission (can this request make its deadline?) and for choosing where a batch runs, never to wait.
"""

from __future__ import annotations

_DECAY = 0.98
"""Weight of the past at each batch: about the last 50 count."""


class BatchCost:
    """Exponentially weighted least squares over (rows, seconds)."""

    __slots__ = ("_line", "_n", "_nn", "_ns", "_s", "_weight")

    def __init__(self) -> None:
        self._line: tuple[float, float] | None = (0.0, 0.0)
        self._weight = self._n = self._s = self._nn = self._ns = 0.0

    def observe(self, rows: int, seconds: float) -> None:
        self._weight = self._weight * _DECAY + 1.0
        self._n = self._n * _DECAY + rows
        self._s = self._s * _DECAY + seconds
        self._nn = self._nn * _DECAY + rows * rows
        self._ns = self._ns * _DECAY + rows * seconds
        self._line = None

    def line(self) -> tuple[float, float]:
        """(a, b) in seconds a row and seconds a batch, neither negative; zeros before the first batch."""
        if self._line is None:
            self._line = self._fitted()
        return self._line

    def _fitted(self) -> tuple[float, float]:
        mean_rows, mean_seconds = self._n / self._weight, self._s / self._weight
        variance = self._nn / self._weight - mean_rows * mean_rows
        if variance < 0.01 * mean_rows * mean_rows:
            # All batches had about the same size: nothing can be said about the slope; blame the rows.
            return mean_seconds / mean_rows, 0.0
        slope = (self._ns / self._weight - mean_rows * mean_seconds) / variance
        slope = min(max(slope, 0.0), mean_seconds / mean_rows)
        return slope, mean_seconds - slope * mean_rows

    def seconds(self, rows: int) -> float:
        """Expected duration of one batch of that many rows."""
        slope, base = self.line()
        return slope * rows + base

    def rows_within(self, seconds: float) -> int:
        """The largest batch that is expected to take no longer; at least 1."""
        slope, base = self.line()
        if slope <= 0.0:
            return 1 << 30 if base <= seconds else 1
        return max(1, int((seconds - base) / slope))
