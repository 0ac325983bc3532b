"""The two plots that people look at, drawn as SVG.

Drawn here and not by matplotlib, whose import would add 0.7 s to each of two steps (docs/adr/0024-plots.md).
"""

from __future__ import annotations

from html import escape

import numpy as np

from diabetes_regression.data import Values

WIDTH, HEIGHT = 640, 480
LEFT, RIGHT, TOP, BOTTOM = 76, 20, 44, 56
POINT, LINE, GRID, TEXT = "#2a6f97", "#c1121f", "#dddddd", "#222222"

Limits = tuple[float, float]


def residuals(predicted: Values, residual: Values) -> bytes:
    """Residuals (truth minus prediction, ``[rows]``) over predictions: even about zero is good."""
    x_limits, y_limits = _limits(predicted), _limits(np.append(residual, 0.0))
    return _figure(
        "Residuals on the held-out rows",
        "predicted Y",
        "Y - predicted Y",
        predicted,
        residual,
        x_limits,
        y_limits,
        (x_limits[0], 0.0, x_limits[1], 0.0),
    )


def predictions(truth: Values, predicted: Values) -> bytes:
    """Predictions over the truth (``[rows]`` each): a perfect model lies on the diagonal."""
    return _square("The candidate's predictions (no champion yet)", "Y", "predicted Y", truth, predicted)


def comparison(truth: Values, candidate: Values, champion: Values) -> bytes:
    """Return each row's absolute errors, candidate over champion: below the diagonal the candidate is closer."""
    x, y = np.abs(truth - champion), np.abs(truth - candidate)
    title = f"Candidate against champion: closer on {int(np.sum(y < x))} of {len(truth)} rows"
    return _square(title, "champion's absolute error", "candidate's absolute error", x, y)


def _square(title: str, x_label: str, y_label: str, x: Values, y: Values) -> bytes:
    limits = _limits(np.concatenate([x, y]))
    return _figure(title, x_label, y_label, x, y, limits, limits, (limits[0], limits[0], limits[1], limits[1]))


def _limits(values: Values) -> Limits:
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def _figure(
    title: str,
    x_label: str,
    y_label: str,
    x: Values,
    y: Values,
    x_limits: Limits,
    y_limits: Limits,
    line: tuple[float, float, float, float],
) -> bytes:
    """Return a scatter plot of ``x`` and ``y`` (``[rows]``) with a reference line from ``line[:2]`` to ``line[2:]``."""

    def across(value: float) -> float:
        return LEFT + (value - x_limits[0]) / (x_limits[1] - x_limits[0]) * (WIDTH - LEFT - RIGHT)

    def down(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_limits[0]) / (y_limits[1] - y_limits[0]) * (HEIGHT - TOP - BOTTOM)

    grid = [
        *(_x_tick(across(tick), tick) for tick in _ticks(x_limits)),
        *(_y_tick(down(tick), tick) for tick in _ticks(y_limits)),
    ]
    points = [f'<circle cx="{across(a):.1f}" cy="{down(b):.1f}" r="3.5"/>' for a, b in zip(x, y, strict=True)]
    x1, y1, x2, y2 = across(line[0]), down(line[1]), across(line[2]), down(line[3])
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="13" fill="{TEXT}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *grid,
        f'<g fill="{POINT}" fill-opacity="0.65">{"".join(points)}</g>',
        f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{LINE}" stroke-width="1.5"/>',
        f'<text x="{WIDTH / 2}" y="26" text-anchor="middle" font-size="16">{escape(title)}</text>',
        f'<text x="{middle_x}" y="{HEIGHT - 14}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text transform="translate(20 {middle_y}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>',
        "</svg>",
    ]
    return ("\n".join(body) + "\n").encode()


def _x_tick(at: float, value: float) -> str:
    return (
        f'<path d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="{GRID}"/>'
        f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:g}</text>'
    )


def _y_tick(at: float, value: float) -> str:
    return (
        f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="{GRID}"/>'
        f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>'
    )


def _ticks(limits: Limits) -> list[float]:
    """Four to ten round numbers inside ``limits``: multiples of 1, 2 or 5 times a power of ten."""
    low, high = limits
    power = 10.0 ** np.floor(np.log10((high - low) / 4))
    step = max(factor * power for factor in (1, 2, 5) if factor * power <= (high - low) / 4)
    return [
        float(round(number * step, 10)) for number in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)
    ]
