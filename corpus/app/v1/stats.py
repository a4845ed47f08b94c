"""What can be said about a series."""

import numpy as np
from scipy import signal


def summary(series):
    return {
        "samples": int(series.size),
        "mean": float(np.mean(series)),
        "deviation": float(np.std(series, ddof=1)),
        "smoothest": float(np.ptp(smooth(series))),
    }


def smooth(series):
    window = min(31, series.size - (series.size + 1) % 2)
    return signal.savgol_filter(series, window, min(3, window - 1))
