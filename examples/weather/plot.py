#!/usr/bin/env python3
"""A plot of a weather file: reads input/seattle-weather.csv, writes output/weather.svg. Only the standard library.

duly create plot.py --schedule '* * * * *' --input seattle-weather.csv=../data/seattle-weather.csv
"""

import csv
from pathlib import Path

WIDTH, HEIGHT, MARGIN = 1200, 420, 40


def main() -> None:
    """Read, draw, say how much."""
    with Path("input/seattle-weather.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    highs = [float(row["temp_max"]) for row in rows]
    lows = [float(row["temp_min"]) for row in rows]
    rain = [float(row["precipitation"]) for row in rows]
    top, bottom = max(highs), min(lows)

    def x(index: int) -> float:
        return MARGIN + index * (WIDTH - 2 * MARGIN) / max(1, len(rows) - 1)

    def y(degrees: float) -> float:
        return MARGIN + (top - degrees) * (HEIGHT - 2 * MARGIN) / (top - bottom)

    band = [f"{x(i):.1f},{y(t):.1f}" for i, t in enumerate(highs)]
    band += [f"{x(i):.1f},{y(t):.1f}" for i, t in reversed(list(enumerate(lows)))]
    bars = "".join(f"M{x(i):.1f} {HEIGHT - MARGIN}v{-mm * 2:.1f}" for i, mm in enumerate(rain) if mm)
    grid = "".join(
        f'<path d="M{MARGIN} {y(t):.1f}H{WIDTH - MARGIN}" stroke="#ccc"/><text x="4" y="{y(t) + 4:.1f}">{t} °C</text>'
        for t in range(int(bottom) // 10 * 10 + 10, int(top) + 1, 10)
    )
    years = "".join(
        f'<text x="{x(i):.0f}" y="{HEIGHT - 12}">{row["date"][:4]}</text>'
        for i, row in enumerate(rows)
        if row["date"].endswith("/01/01")
    )
    Path("output/weather.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="#fff"/>{grid}'
        f'<path d="{bars}" stroke="#4a90d9"/><polygon points="{" ".join(band)}" fill="#e4572e" fill-opacity=".6"/>'
        f"{years}</svg>\n"
    )
    print(f"{len(rows)} days, {bottom} to {top} °C, {sum(rain):.0f} mm of rain")


if __name__ == "__main__":
    main()
