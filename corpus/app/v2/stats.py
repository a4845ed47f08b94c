"""What can be said about a series."""

import numpy as np
from scipy import signal, stats


def summary(series):
    slope = stats.linregress(np.arange(series.size), series)
    return {
        "samples": int(series.size),
        "mean": float(np.mean(series)),
        "median": float(np.median(series)),
        "deviation": float(np.std(series, ddof=1)),
        "smoothest": float(np.ptp(smooth(series))),
        "trend": float(slope.slope),
        "period": period(series),
    }


def smooth(series):
    window = min(31, series.size - (series.size + 1) % 2)
    return signal.savgol_filter(series, window, min(3, window - 1))


def period(series):
    """Returns the samples in one turn of the strongest wave."""
    frequency, power = signal.periodogram(series - np.mean(series))
    return float(1 / frequency[1 + np.argmax(power[1:])])
