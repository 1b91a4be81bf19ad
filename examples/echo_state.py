"""Forecast a chaotic series with an echo state network, and draw the forecast.

python -m pip install 'rnnfast[echo-state,plot]'
python examples/echo_state.py

The series is a solution of the Mackey-Glass equation dx/dt = 0.2 x(t - 17) / (1 + x(t - 17)^10) -
0.1 x(t). The network sees 2,000 steps of it. Then it gets its own predictions as input.
"""

import numpy as np
from matplotlib.figure import Figure

from rnnfast.tasks import EchoState


def mackey_glass(steps, delay=17, parts=10):
    """Return the series at whole times. The solution takes `parts` Euler steps for each of them."""
    x = [1.2] * (delay * parts + 1)
    for _ in range(steps * parts):
        late = x[-delay * parts - 1]
        x.append(x[-1] + (0.2 * late / (1 + late**10) - 0.1 * x[-1]) / parts)
    return np.array(x[delay * parts + 1 :: parts])


TRAIN, AHEAD = 2000, 1000
series = mackey_glass(TRAIN + AHEAD) - 1  # around 0, where tanh is nearly linear
known, future = series[:TRAIN], series[TRAIN:]

# The target of each step is the next value.
model = EchoState(units=500, spectral_radius=1.1, leak=0.5, ridge=1e-8, bias_scaling=0.2, seed=1)
model.fit(known[:-1], known[1:])
print(f"1 - R² of the next value: {1 - model.score(known[:-1], known[1:]):.1e}")

forecast = model.forecast(AHEAD, known)
wrong = np.abs(forecast - future) > 0.5 * series.std()
horizon = int(wrong.argmax()) if wrong.any() else AHEAD
print(f"the forecast is within half a standard deviation for {horizon} steps")

figure = Figure(figsize=(9, 3), layout="constrained")
axes = figure.subplots()
axes.plot(range(-100, 0), known[-100:], color="black", label="known")
axes.plot(future, color="silver", linewidth=4, label="future")
axes.plot(forecast, color="tab:red", label="forecast")
axes.set(xlabel="step", title="Mackey-Glass, forecast by an echo state network")
figure.legend(loc="outside lower center", ncols=3)
figure.savefig("echo-state.png", dpi=150)
print("wrote echo-state.png")
