"""A needle's tip over the frames of a clip: constant-velocity Kalman filter, smoothed backwards."""

from __future__ import annotations

import numpy as np

_NOISE = 0.35  # standard deviation of a found tip, mm
_JERK = 12.0  # of the change of its velocity per square root of a second, mm/s


def smoothed_tips(
    tips: np.ndarray, times_s: np.ndarray, *, noise: float = _NOISE, unrest: float = _JERK
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and velocities (n, 3) of a tip that was seen at ``tips`` (n, 3).

    Kalman 1960; Rauch, Tung & Striebel 1965; white-noise acceleration (Bar-Shalom et al., Estimation with
    Applications to Tracking and Navigation, 2001, §6.2). A gap in time only widens the prediction.
    """
    count = len(tips)
    steps = np.diff(times_s)
    states, spreads, ahead_states, ahead_spreads = [], [], [], []
    state = np.stack([tips[0], np.zeros(3)])
    # The axes are independent and share their covariance.
    spread = np.diag([noise**2, 20.0**2])
    for index in range(count):
        if index:
            state, spread = _moved(state, spread, float(steps[index - 1]), unrest)
        ahead_states.append(state)
        ahead_spreads.append(spread)
        if index:
            gain = spread[:, :1] / (spread[0, 0] + noise**2)
            state = state + gain * (tips[index] - state[0])
            spread = spread - gain @ spread[:1]
        states.append(state)
        spreads.append(spread)
    for index in range(count - 2, -1, -1):
        move = np.array([[1.0, steps[index]], [0.0, 1.0]])
        back = spreads[index] @ move.T @ np.linalg.inv(ahead_spreads[index + 1])
        states[index] = states[index] + back @ (states[index + 1] - ahead_states[index + 1])
    answer = np.stack(states)
    return answer[:, 0], answer[:, 1]


def _moved(
    state: np.ndarray, spread: np.ndarray, step: float, unrest: float
) -> tuple[np.ndarray, np.ndarray]:
    move = np.array([[1.0, step], [0.0, 1.0]])
    noise = unrest**2 * np.array([[step**3 / 3, step**2 / 2], [step**2 / 2, step]])
    return move @ state, move @ spread @ move.T + noise
