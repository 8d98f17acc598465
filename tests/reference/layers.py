"""Every operation of a decoder-only Transformer, forward and backward, in float64 NumPy.

B batch, T time, D width, H query heads, G key/value heads, K head width, W value width, V vocabulary, F inner width,
R rotated channels; N any number of heads; "..." any leading axes.

An operation is a pair of functions. `name(...)` returns its output and a tuple of what the way back needs;
`name_backward(gradient, kept)` takes the gradient of the output and returns those of the inputs.

In the derivations L is the loss, a single number, and dx stands for ∂L/∂x, which has the shape of x. Each is an
application of one rule: if y depends on x, then dx_i = Σ_j dy_j ∂y_j/∂x_i, and if x is used in several places, the
gradients from all of them are added (Rumelhart et al. 1986, Nature 323; Goodfellow et al. 2016, *Deep Learning*,
section 6.5.2). ⊙ multiplies element by element, mean and Σ run over the last axis unless another is named.
"""

import math
from typing import Any

import numpy as np

Array = np.ndarray
Kept = tuple[Any, ...]

# --- Tokens and positions in ------------------------------------------------------------------------------------------


def embedding(table: Array, index: Array) -> tuple[Array, Kept]:
    """Rows of a table: y = table[index], (V, D) and (...) -> (..., D) (Bengio et al. 2003, JMLR 3, section 2)."""
    return table[index], (index, table.shape)


def embedding_backward(gradient: Array, kept: Kept) -> Array:
    """The table's gradient, (V, D): each row of the gradient is added to the row of the table that it was read from.

    Written with a matrix, y = onehot(index) table, where onehot(index)_nv = 1 if index_n = v, and 0 otherwise. So by
    the rule for a product of matrices (see `linear_backward`)

        dtable = onehot(index)ᵀ dy,   that is   dtable_v = Σ of dy_n over all n with index_n = v.

    >>> embedding_backward(np.array([[1.0], [10.0], [100.0]]), (np.array([2, 0, 2]), (4, 1))).ravel().tolist()
    [10.0, 0.0, 101.0, 0.0]
    """
    index, shape = kept
    table_gradient = np.zeros(shape)
    np.add.at(table_gradient, index, gradient)  # unlike `+=`, adds once for every occurrence of an index
    return table_gradient


def learned_position(x: Array, table: Array, position: Array) -> tuple[Array, Kept]:
    """Adds a learned vector for each position: (..., D), (context, D) and (...) -> (..., D) (Gehring et al. 2017,
    arXiv:1705.03122, section 3.1)."""
    vectors, kept = embedding(table, position)
    return x + vectors, kept


def learned_position_backward(gradient: Array, kept: Kept) -> tuple[Array, Array]:
    """Gradients of x and of the table: y = x + table[position], and a sum hands its gradient on to both terms."""
    return gradient, embedding_backward(gradient, kept)


# --- Linear map -------------------------------------------------------------------------------------------------------


def linear(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Kept]:
    """y = x Wᵀ + b: (..., inputs), (outputs, inputs) and (outputs,) -> (..., outputs)."""
    y = x @ weight.T
    if bias is not None:
        y = y + bias
    return y, (x, weight, bias is not None)


def linear_backward(gradient: Array, kept: Kept) -> tuple[Array, Array, Array | None]:
    """Gradients of x, the weight and the bias (None if there was none).

    Row n of x gives y_no = Σ_i x_ni W_oi + b_o. So ∂y_no/∂x_ni = W_oi, ∂y_no/∂W_oi = x_ni, ∂y_no/∂b_o = 1, and

        dx_ni = Σ_o dy_no W_oi    dx = dy W
        dW_oi = Σ_n dy_no x_ni    dW = dyᵀ x
        db_o  = Σ_n dy_no         the weight and the bias serve every row, so their gradients add up over the rows

    (Goodfellow et al. 2016, section 6.5.6, with A = x and B = Wᵀ).
    """
    x, weight, has_bias = kept
    rows, gradient_rows = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    weight_gradient = gradient_rows.T @ rows
    bias_gradient = gradient_rows.sum(axis=0) if has_bias else None
    return gradient @ weight, weight_gradient, bias_gradient


# --- Normalisation ----------------------------------------------------------------------------------------------------


def layer_norm(x: Array, weight: Array, bias: Array | None, epsilon: float) -> tuple[Array, Kept]:
    """y = w ⊙ (x − mean(x)) / √(mean((x − mean(x))²) + ε) + b: (..., D), (D,) and (D,) -> (..., D) (Ba et al. 2016,
    arXiv:1607.06450, eq. 3 and 4; the ε, which is not there, keeps a constant x from being divided by zero)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)  # (..., 1)
    normalised = centred / deviation
    y = weight * normalised
    if bias is not None:
        y = y + bias
    return y, (normalised, deviation, weight, bias is not None)


def layer_norm_backward(gradient: Array, kept: Kept) -> tuple[Array, Array, Array | None]:
    """Gradients of x, the weight and the bias (None if there was none).

    In steps, for one row of D numbers:

        c = x − mean(x),   s = √(mean(c²) + ε),   n = c / s,   y = w ⊙ n + b.

    Backwards through them, last first, as for batch normalisation (Ioffe and Szegedy 2015, arXiv:1502.03167, the
    equations after algorithm 1), whose averages run over the batch where these run over the row:

        y:  dw = Σ_rows dy ⊙ n     db = Σ_rows dy     dn = dy ⊙ w
        n:  ds = −Σ_j dn_j c_j / s² = −Σ_j dn_j n_j / s         (c also reaches n directly, with dn / s)
        s:  ∂s/∂c_j = c_j / (D s) = n_j / D
        so  dc = dn / s + ds n / D = (dn − n mean(dn ⊙ n)) / s
        c:  ∂c_j/∂x_i = [i = j] − 1/D, so dx = dc − mean(dc)

    As mean(n) = 0, mean(dc) = mean(dn) / s, and together

        dx = (dn − mean(dn) − n mean(dn ⊙ n)) / s:

    of dn only that part gets through which neither shifts nor stretches the row.
    """
    normalised, deviation, weight, has_bias = kept
    weight_gradient = _sum_over_rows(gradient * normalised)
    bias_gradient = _sum_over_rows(gradient) if has_bias else None
    normalised_gradient = gradient * weight
    shift = normalised_gradient.mean(axis=-1, keepdims=True)
    stretch = (normalised_gradient * normalised).mean(axis=-1, keepdims=True)
    return (normalised_gradient - shift - normalised * stretch) / deviation, weight_gradient, bias_gradient


def rms_norm(x: Array, weight: Array, epsilon: float) -> tuple[Array, Kept]:
    """y = w ⊙ x / √(mean(x²) + ε): (..., D) and (D,) -> (..., D) (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4; the
    ε, which is not there, keeps a zero x from being divided by zero)."""
    root_mean_square = np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon)  # (..., 1)
    normalised = x / root_mean_square
    return weight * normalised, (normalised, root_mean_square, weight)


def rms_norm_backward(gradient: Array, kept: Kept) -> tuple[Array, Array]:
    """Gradients of x and the weight.

    In steps r = √(mean(x²) + ε), n = x / r, y = w ⊙ n. This is LayerNorm without the first step, so its derivation
    holds with c = x and s = r, up to where the mean is taken away:

        dw = Σ_rows dy ⊙ n     dn = dy ⊙ w     dx = (dn − n mean(dn ⊙ n)) / r.

    The matrix that turns dn into dx, (I − n nᵀ/D) / r, is R in section 4.2 of Zhang and Sennrich 2019.
    """
    normalised, root_mean_square, weight = kept
    weight_gradient = _sum_over_rows(gradient * normalised)
    normalised_gradient = gradient * weight
    stretch = (normalised_gradient * normalised).mean(axis=-1, keepdims=True)
    return (normalised_gradient - normalised * stretch) / root_mean_square, weight_gradient


def _sum_over_rows(x: Array) -> Array:
    """(..., D) -> (D,)"""
    return x.reshape(-1, x.shape[-1]).sum(axis=0)


# --- Rotary position --------------------------------------------------------------------------------------------------


def rotary(x: Array, position: Array, base: float, channels: int | None = None) -> tuple[Array, Kept]:
    """Turns pairs of channels by angles that grow with position: (B, N, T, K) and (B, T) -> (B, N, T, K).

    Of the first R channels (`channels`; all K if not given) channel i < R/2 and channel i + R/2 are the two coordinates
    of a point in the plane, which at position t is turned by the angle t base^(−2i/R):

        y_i       = x_i cos − x_{i+R/2} sin
        y_{i+R/2} = x_i sin + x_{i+R/2} cos

    (Su et al. 2021, arXiv:2104.09864, eq. 34, which pairs neighbours; halves are paired as in GPT-NeoX, Black et al.
    2022, arXiv:2204.06745, section 2.1.1, where also only a part of the channels is turned.)
    """
    channels = x.shape[-1] if channels is None else channels
    frequency = base ** (-np.arange(0, channels, 2) / channels)  # (R/2,)
    angle = position[:, None, :, None] * frequency  # (B, 1, T, R/2)
    return _turn(x, angle), (angle,)


def rotary_backward(gradient: Array, kept: Kept) -> Array:
    """The gradient of x.

    For one pair y = M x with the matrix of a rotation, M = [[cos, −sin], [sin, cos]]. By the rule for a product
    dx = Mᵀ dy, and the transpose of a rotation is the rotation by the opposite angle (Su et al. 2021, section 3.2.2:
    the matrix is orthogonal). Channels that were not turned pass the gradient on as it is.
    """
    (angle,) = kept
    return _turn(gradient, -angle)


def _turn(x: Array, angle: Array) -> Array:
    half = angle.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.concatenate((first * cosine - second * sine, first * sine + second * cosine, rest), axis=-1)


# --- Attention --------------------------------------------------------------------------------------------------------


def softmax(x: Array) -> tuple[Array, Kept]:
    """p_i = exp(x_i) / Σ_j exp(x_j) over the last axis: (..., S) -> (..., S)."""
    exponential = np.exp(x - x.max(axis=-1, keepdims=True))  # the shift cancels, and keeps exp within range
    probability = exponential / exponential.sum(axis=-1, keepdims=True)
    return probability, (probability,)


def softmax_backward(gradient: Array, kept: Kept) -> Array:
    """The gradient of x.

    With Z = Σ_j exp(x_j), the quotient rule gives for p_i = exp(x_i) / Z

        ∂p_i/∂x_j = [i = j] exp(x_i)/Z − exp(x_i) exp(x_j)/Z² = p_i ([i = j] − p_j)

    (Bishop 2006, *Pattern Recognition and Machine Learning*, eq. 4.106), and so

        dx_j = Σ_i dp_i p_i ([i = j] − p_j) = p_j (dp_j − Σ_i dp_i p_i).

    What is the same for all of dp drops out: probabilities add up to one whatever x is.
    """
    (probability,) = kept
    return probability * (gradient - (gradient * probability).sum(axis=-1, keepdims=True))


def causal_attention(queries: Array, keys: Array, values: Array) -> tuple[Array, Kept]:
    """Each position reads itself and all before it: (B, H, T, K), (B, G, T, K) and (B, G, T, W) -> (B, H, T, W).

    softmax(Q Kᵀ / √K) V, with −∞ for the scores of later positions (Vaswani et al. 2017, arXiv:1706.03762, eq. 1 and
    section 3.2.3). Key/value head g serves the H/G consecutive query heads from g H/G on (Ainslie et al. 2023,
    arXiv:2305.13245, section 2.2): in the code `m` numbers the query heads within a group.
    """
    batch, heads, time, width = queries.shape
    groups = keys.shape[1]
    assert heads % groups == 0, f"{groups} key/value heads cannot serve {heads} query heads equally"
    queries = queries.reshape(batch, groups, heads // groups, time, width)
    scores = np.einsum("bgmtk,bgsk->bgmts", queries, keys) / math.sqrt(width)
    visible = np.tri(time, dtype=bool)  # query t sees keys s ≤ t
    probability, _ = softmax(np.where(visible, scores, -np.inf))
    read = np.einsum("bgmts,bgsw->bgmtw", probability, values)
    return read.reshape(batch, heads, time, -1), (queries, keys, values, probability)


def causal_attention_backward(gradient: Array, kept: Kept) -> tuple[Array, Array, Array]:
    """Gradients of queries, keys and values.

    For one head, in steps: S = Q Kᵀ / √K, P = softmax(S), Y = P V. Backwards, by the rules for a product and for the
    softmax (Dao et al. 2022, arXiv:2205.14135, appendix B.2):

        Y:  dV = Pᵀ dY               dP = dY Vᵀ
        P:  dS_ts = P_ts (dP_ts − Σ_u dP_tu P_tu)      where a key is hidden P_ts = 0, so dS_ts = 0 too
        S:  dQ = dS K / √K           dK = dSᵀ Q / √K

    A key/value head that serves several query heads gets the sum of the gradients from all of them: the sum over `m`.
    """
    queries, keys, values, probability = kept
    batch, groups, members, time, width = queries.shape
    gradient = gradient.reshape(batch, groups, members, time, -1)
    values_gradient = np.einsum("bgmts,bgmtw->bgsw", probability, gradient)
    probability_gradient = np.einsum("bgmtw,bgsw->bgmts", gradient, values)
    scores_gradient = softmax_backward(probability_gradient, (probability,)) / math.sqrt(width)
    queries_gradient = np.einsum("bgmts,bgsk->bgmtk", scores_gradient, keys)
    keys_gradient = np.einsum("bgmts,bgmtk->bgsk", scores_gradient, queries)
    return queries_gradient.reshape(batch, groups * members, time, width), keys_gradient, values_gradient


# --- Activations ------------------------------------------------------------------------------------------------------

_erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: Array) -> tuple[Array, Kept]:
    """y = x Φ(x), where Φ(x) = (1 + erf(x/√2)) / 2 is the share of a standard normal distribution that lies below x
    (Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2)."""
    share_below = (1 + _erf(x / math.sqrt(2))) / 2
    return x * share_below, (x, share_below)


def gelu_backward(gradient: Array, kept: Kept) -> Array:
    """The gradient of x.

    By the product rule dx = dy (Φ(x) + x Φ'(x)); and Φ, a share of the distribution, grows by its density:
    Φ'(x) = exp(−x²/2) / √(2π).
    """
    x, share_below = kept
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return gradient * (share_below + x * density)


def gelu_tanh(x: Array) -> tuple[Array, Kept]:
    """y = x (1 + tanh(u)) / 2 with u = √(2/π) (x + 0.044715 x³): an approximation of `gelu` (Hendrycks and Gimpel 2016,
    section 2), the one that GPT-2 uses."""
    tanh = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return x * (1 + tanh) / 2, (x, tanh)


def gelu_tanh_backward(gradient: Array, kept: Kept) -> Array:
    """The gradient of x.

    By the product rule dy/dx = (1 + tanh(u)) / 2 + x tanh'(u) u' / 2, with tanh'(u) = 1 − tanh²(u) and
    u' = √(2/π) (1 + 3 × 0.044715 x²).
    """
    x, tanh = kept
    inner_slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    return gradient * ((1 + tanh) / 2 + x * (1 - tanh**2) * inner_slope / 2)


def silu(x: Array) -> tuple[Array, Kept]:
    """y = x σ(x), where σ(x) = 1 / (1 + exp(−x)) (Elfwing et al. 2018, arXiv:1702.03118, section 2)."""
    sigmoid = (1 + np.tanh(x / 2)) / 2  # the same as the formula above, which overflows for very negative x
    return x * sigmoid, (x, sigmoid)


def silu_backward(gradient: Array, kept: Kept) -> Array:
    """The gradient of x.

    σ'(x) = exp(−x) / (1 + exp(−x))² = σ(x) (1 − σ(x)), and by the product rule

        dx = dy (σ(x) + x σ(x) (1 − σ(x))) = dy σ(x) (1 + x (1 − σ(x)))

    (Elfwing et al. 2018, section 2, where this derivative is an activation of its own).
    """
    x, sigmoid = kept
    return gradient * sigmoid * (1 + x * (1 - sigmoid))


def swiglu(gate: Array, up: Array) -> tuple[Array, Kept]:
    """y = silu(gate) ⊙ up: (..., F) and (..., F) -> (..., F) (Shazeer 2020, arXiv:2002.05202, eq. 5 with β = 1)."""
    opened, kept = silu(gate)
    return opened * up, (opened, up, kept)


def swiglu_backward(gradient: Array, kept: Kept) -> tuple[Array, Array]:
    """Gradients of gate and up: of a product a ⊙ b, da = dy ⊙ b and db = dy ⊙ a; a then goes back through the SiLU."""
    opened, up, silu_kept = kept
    return silu_backward(gradient * up, silu_kept), gradient * opened


# --- Loss -------------------------------------------------------------------------------------------------------------


def cross_entropy(logits: Array, targets: Array, weights: Array, divisor: float) -> tuple[float, Kept]:
    """L = Σ_n weight_n (−log p_n[target_n]) / divisor with p = softmax(logits), in nats: (..., V), (...) and (...).

    log p_v = x_v − log Σ_j exp(x_j) (Goodfellow et al. 2016, eq. 6.30). Padding has weight 0. The divisor is the total
    weight for a mean, and the total of a larger batch where this is a part of one.
    """
    probability, _ = softmax(logits)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    picked = np.take_along_axis(log_probability, targets[..., None], axis=-1)[..., 0]
    return float((weights * -picked).sum() / divisor), (probability, targets, weights, divisor)


def cross_entropy_backward(gradient: float, kept: Kept) -> Array:
    """The logits' gradient; `gradient` is 1 where the cross-entropy is the loss itself.

    For one position with logits x and target t, −log p_t = log Σ_j exp(x_j) − x_t, so

        ∂(−log p_t)/∂x_v = exp(x_v) / Σ_j exp(x_j) − [v = t] = p_v − [v = t]

    (Bishop 2006, eq. 4.109), times the weight over the divisor.
    """
    probability, targets, weights, divisor = kept
    onehot = targets[..., None] == np.arange(probability.shape[-1])
    return gradient * (probability - onehot) * (weights / divisor)[..., None]
