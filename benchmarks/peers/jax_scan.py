"""JAX."""

import timeit

from .base import Peer, installed

UNROLLED_STEPS = 8  # steps that XLA's scan unrolls, if that is faster


class JAX(Peer):
    """`jax.lax.scan` over the steps, after one product for all inputs, with `jit` and `vjp`."""

    def __init__(self):
        installed("jax")
        import jax

        self.jax = jax
        self.version = jax.__version__

    def call(self, case, data, mode):
        jax = self.jax
        jax.clear_caches()
        dtype = getattr(jax.numpy, case.dtype)
        x = jax.numpy.asarray(data.x) if case.one_hot else jax.numpy.asarray(data.x, dtype)
        weights = [jax.numpy.asarray(w, dtype) for w in data.weights]
        dy = jax.numpy.asarray(data.dy, dtype)

        def build(unroll):
            def rnn(x, weights):
                return self._rnn(case, data.mask, x, weights, unroll)

            def training(x, weights, dy):
                if case.one_hot:
                    return jax.vjp(lambda weights: rnn(x, weights)[0], weights)[1](dy)[0]
                dx, dweights = jax.vjp(lambda x, weights: rnn(x, weights)[0], x, weights)[1](dy)
                return [dx, *dweights]

            if mode == "forward":
                compiled = jax.jit(rnn).lower(x, weights).compile()
                return lambda: jax.block_until_ready(compiled(x, weights))
            compiled = jax.jit(training).lower(x, weights, dy).compile()
            return lambda: jax.block_until_ready(compiled(x, weights, dy))

        unrolls = [1]
        # With one row the unrolled backward pass takes seconds.
        if case.T >= UNROLLED_STEPS and not (mode == "training" and case.B == 1):
            unrolls.append(UNROLLED_STEPS)
        calls = [build(unroll) for unroll in unrolls]
        return min(calls, key=lambda call: min(timeit.repeat(call, repeat=4, number=1)))

    def _rnn(self, case, mask, x, weights, unroll):
        jnp, lax = self.jax.numpy, self.jax.lax
        finals = []
        for layer in range(case.layers):
            outputs = []
            for direction in range(case.directions):
                w_ih, w_hh, b_ih, b_hh = weights[4 * (layer * case.directions + direction) :][:4]
                pre = (w_ih.T[x] if x.ndim == 2 else x @ w_ih.T) + b_ih
                if case.cell != "gru":  # one gate of a GRU multiplies the product and b_hh
                    pre, b_hh = pre + b_hh, 0

                def step(state, inputs, w_hh=w_hh, b_hh=b_hh):
                    pre, real = inputs
                    new = self._new_state(case.cell, pre, state[0] @ w_hh.T + b_hh, state)
                    if real is None:
                        return new, new[0]
                    held = [jnp.where(real, a, b) for a, b in zip(new, state, strict=True)]
                    return held, jnp.where(real, new[0], 0)

                state = [jnp.zeros((case.B, case.H), pre.dtype) for _ in case.states]
                steps = (pre, mask)
                last, y = lax.scan(step, state, steps, unroll=unroll, reverse=direction == 1)
                finals.append(last)
                outputs.append(y)
            x = jnp.concatenate(outputs, axis=-1) if len(outputs) > 1 else outputs[0]
        return x, *(jnp.stack(states) for states in zip(*finals, strict=True))

    def _new_state(self, cell, pre, product, state):
        """Return [h_t], or [h_t, c_t] for an LSTM."""
        jnp, sigmoid = self.jax.numpy, self.jax.nn.sigmoid
        if cell == "rnn":
            return [jnp.tanh(pre + product)]
        if cell == "gru":
            (r, z, n), (kept_r, kept_z, kept_n) = (jnp.split(a, 3, axis=-1) for a in (pre, product))
            n = jnp.tanh(n + sigmoid(r + kept_r) * kept_n)
            z = sigmoid(z + kept_z)
            return [(1 - z) * n + z * state[0]]
        i, f, g, o = jnp.split(pre + product, 4, axis=-1)
        c = sigmoid(f) * state[1] + sigmoid(i) * jnp.tanh(g)
        return [sigmoid(o) * jnp.tanh(c), c]
