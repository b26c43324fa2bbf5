/* Ops on single elements: each is one sweep over memory, and bound by it. Outputs may be inputs. Beside them the sum
 * over heads, whose output may not. */
#include "cuda/sweep.cuh"

namespace {

/* ---- moving ----------------------------------------------------------------------------------------------------- */

struct Fill {
    float value;
    __device__ void operator()(float &x) const { x = value; }
};

void fill(Backend *be, Tensor x, float value) {
    by_dtype(x.dtype, [&](auto zero) { cuda_sweep(be, "fill", Fill{value}, writes<decltype(zero)>(x)); });
}

struct Copy {
    __device__ void operator()(float &dst, float src) const { dst = src; }
};

void copy(Backend *be, Tensor dst, Tensor src) {
    by_dtype(dst.dtype, [&](auto to) {
        by_dtype(src.dtype, [&](auto from) {
            cuda_sweep(be, "copy", Copy(), writes<decltype(to)>(dst), reads<decltype(from)>(src));
        });
    });
}

struct Scale {
    float factor;
    __device__ void operator()(float &x) const { x *= factor; }
};

void scale(Backend *be, Tensor x, float factor) {
    by_dtype(x.dtype, [&](auto zero) { cuda_sweep(be, "scale", Scale{factor}, updates<decltype(zero)>(x)); });
}

/* ---- sums over heads -------------------------------------------------------------------------------------------- */

constexpr int SUM_THREADS = 256;

/* Where a row of x begins: of token n and head h. */
struct HeadRows {
    int64_t token_stride, head_stride;
    int heads;
};

/* A thread sums N neighbouring columns of one token, head after head. */
template <int N, class T>
__global__ void __launch_bounds__(SUM_THREADS)
    sum_heads_kernel(T *out, int64_t out_stride, const T *x, HeadRows rows, int64_t tokens, int columns) {
    int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
    if (n >= tokens) return;
    for (int i = static_cast<int>(threadIdx.x) * N; i < columns; i += static_cast<int>(blockDim.x) * N) {
        float sum[N] = {}, value[N];
        for (int h = 0; h < rows.heads; h++) {
            load_floats(value, x + n * rows.token_stride + h * rows.head_stride + i);
            for (int k = 0; k < N; k++) sum[k] += value[k];
        }
        store_floats(out + n * out_stride + i, sum);
    }
}

void sum_heads(Backend *be, Tensor out, Tensor x) {
    HeadRows rows = {x.stride[0], x.stride[1], int_of(x.shape[1])};
    int columns = int_of(x.shape[2]);
    by_dtype(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        by_access<T>(rows_are_aligned(out) && rows_are_aligned(x), [&](auto n) {
            dim3 block = block_of_rows(SUM_THREADS, columns, n), grid(int_of(ceil_div(x.shape[0], block.y)));
            cuda_launch(be, "sum_heads", sum_heads_kernel<decltype(n)::value, T>, grid, block, 0, data_of<T>(out),
                        out.stride[0], data_of<T>(x), rows, x.shape[0], columns);
        });
    });
}

/* ---- gelu ------------------------------------------------------------------------------------------------------- */

/* With u = sqrt(2/pi) (x + 0.044715 x³):  0.5 (1 + tanh u) = sigmoid(2u), one exponential and no cancellation. */
constexpr float GELU_LINEAR = 2 * 0.7978845608f;            /* of 2u */
constexpr float GELU_CUBIC = 2 * 0.7978845608f * 0.044715f; /* of 2u */

struct Gelu {
    __device__ void operator()(float &out, float x) const {
        out = x * fast_sigmoid(x * (GELU_CUBIC * x * x + GELU_LINEAR));
    }
};

void gelu(Backend *be, Tensor out, Tensor x) {
    by_dtype(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        cuda_sweep(be, "gelu", Gelu(), writes<T>(out), reads<T>(x));
    });
}

/* (x s(2u))' = s + x s (1-s) (2u)' */
struct GeluGrad {
    __device__ void operator()(float &dx, float dout, float x) const {
        float s = fast_sigmoid(x * (GELU_CUBIC * x * x + GELU_LINEAR));
        float slope = 3 * GELU_CUBIC * x * x + GELU_LINEAR;
        dx = dout * (x * slope * (s * (1.0f - s)) + s);
    }
};

void gelu_grad(Backend *be, Tensor dx, Tensor dout, Tensor x) {
    by_dtype(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        cuda_sweep(be, "gelu_grad", GeluGrad(), writes<T>(dx), reads<T>(dout), reads<T>(x));
    });
}

/* ---- swiglu ----------------------------------------------------------------------------------------------------- */

/* x = [gate | up], side by side in each row. */
Tensor gate_of(Tensor x) {
    return tensor_slice(x, 1, 0, x.shape[1] / 2);
}
Tensor up_of(Tensor x) {
    return tensor_slice(x, 1, x.shape[1] / 2, x.shape[1] / 2);
}

struct Swiglu {
    __device__ void operator()(float &out, float gate, float up) const { out = gate * fast_sigmoid(gate) * up; }
};

void swiglu(Backend *be, Tensor out, Tensor x) {
    by_dtype(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        cuda_sweep(be, "swiglu", Swiglu(), writes<T>(out), reads<T>(gate_of(x)), reads<T>(up_of(x)));
    });
}

/* silu'(g) = s + g s (1-s) with s = sigmoid(g). */
struct SwigluGrad {
    __device__ void operator()(float &dgate, float &dup, float dout, float gate, float up) const {
        float s = fast_sigmoid(gate), silu = gate * s;
        dgate = dout * up * (silu * (1.0f - s) + s);
        dup = dout * silu;
    }
};

void swiglu_grad(Backend *be, Tensor dx, Tensor dout, Tensor x) {
    by_dtype(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        cuda_sweep(be, "swiglu_grad", SwigluGrad(), writes<T>(gate_of(dx)), writes<T>(up_of(dx)), reads<T>(dout),
                   reads<T>(gate_of(x)), reads<T>(up_of(x)));
    });
}

/* ---- rotary positions ------------------------------------------------------------------------------------------- */

/* The pairs (x[i], x[i+D/2]) of every head turn by the table's angles, or back where direction is -1. */
struct Rotate {
    float direction;
    __device__ void operator()(float &first, float &second, float cosine, float sine) const {
        float a = first, b = second, s = direction * sine;
        first = a * cosine - b * s;
        second = b * cosine + a * s;
    }
};

/* Half of the table, with one row for all sequences and heads: (B,T,H,D/2) with strides of 0. */
Tensor angles_of(Tensor table, Tensor x, int64_t begin) {
    Tensor t = tensor_slice(x, 3, 0, x.shape[3] / 2);
    t.data = data_of<float>(table) + begin;
    t.dtype = DTYPE_F32;
    t.stride[0] = t.stride[2] = 0;
    t.stride[1] = table.stride[0];
    return t;
}

void rotate(Backend *be, const char *name, Tensor x, Tensor table, float direction) {
    int64_t half = x.shape[3] / 2;
    Tensor first = tensor_slice(x, 3, 0, half), second = tensor_slice(x, 3, half, half);
    by_dtype(x.dtype, [&](auto zero) {
        using T = decltype(zero);
        cuda_sweep(be, name, Rotate{direction}, updates<T>(first), updates<T>(second),
                   reads<float>(angles_of(table, x, 0)), reads<float>(angles_of(table, x, half)));
    });
}

void rope(Backend *be, Tensor x, Tensor table) {
    rotate(be, "rope", x, table, 1.0f);
}

void rope_grad(Backend *be, Tensor dx, Tensor table) {
    rotate(be, "rope_grad", dx, table, -1.0f);
}

} // namespace

int64_t cuda_elementwise_scratch_bytes(const Backend *, const OpLimits *) {
    return 0;
}

void cuda_fill_elementwise(BackendOps *ops) {
    ops->fill = fill;
    ops->copy = copy;
    ops->scale = scale;
    ops->sum_heads = sum_heads;
    ops->gelu = gelu;
    ops->gelu_grad = gelu_grad;
    ops->swiglu = swiglu;
    ops->swiglu_grad = swiglu_grad;
    ops->rope = rope;
    ops->rope_grad = rope_grad;
}
