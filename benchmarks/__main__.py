"""Run every benchmark in turn."""

from __future__ import annotations

from benchmarks import feed

if __name__ == "__main__":
    feed.main([])
