/* Optimizer steps: each reads and writes its tensors once, but for normalize, which has to know the norm first. */
#include <algorithm>

#include "cuda/sweep.cuh"

namespace {

/* f(an operand that writes w_copy, of either dtype, or an absent one). */
template <class F> void by_copy(Tensor w_copy, F f) {
    if (!tensor_present(w_copy)) return f(absent());
    by_dtype(w_copy.dtype, [&](auto zero) { f(writes<decltype(zero)>(w_copy)); });
}

/* ---- adamw ------------------------------------------------------------------------------------------------------ */

/* Where cautious weight decay does not act, a weight keeps all of itself. */
CU_DEVICE float kept(bool cautious, float keep, float w, float update) {
    return cautious && !(update * w >= 0.0f) ? 1.0f : keep;
}

struct Adamw {
    float keep, rate, root; /* of w; lr / correction1; 1 / sqrt(correction2) */
    float beta1, beta2, eps, grad_scale;
    bool cautious;

    __device__ void operator()(float &w, float &w_copy, float &m, float &v, float g) const {
        float gradient = grad_scale * g;
        m = beta1 * m + (1.0f - beta1) * gradient;
        v = beta2 * v + (1.0f - beta2) * gradient * gradient;
        w = kept(cautious, keep, w, m) * w - rate * m / (sqrtf(v) * root + eps);
        w_copy = w;
    }
};

void adamw(Backend *be, Tensor w, Tensor w_copy, Tensor m, Tensor v, Tensor g, AdamwStep s) {
    Adamw step = {1.0f - s.lr * s.decay,
                  s.lr / s.correction1,
                  1.0f / sqrtf(s.correction2),
                  s.beta1,
                  s.beta2,
                  s.eps,
                  s.grad_scale,
                  s.cautious};
    by_copy(w_copy, [&](auto copy) {
        cuda_sweep(be, "adamw", step, updates<float>(w), copy, updates<float>(m), updates<float>(v), reads<float>(g));
    });
}

/* ---- momentum --------------------------------------------------------------------------------------------------- */

/* add and fresh have taken up grad_scale. */
struct Momentum {
    float keep, add, old, fresh;
    bool sign;

    __device__ void operator()(float &u, float &m, float g) const {
        u = old * m + fresh * g;
        if (sign) u = u > 0.0f ? 1.0f : u < 0.0f ? -1.0f : u; /* 0 and NaN stay */
        m = keep * m + add * g;
    }
};

void momentum(Backend *be, Tensor u, Tensor m, Tensor g, MomentumStep s) {
    Momentum step = {s.keep, s.add * s.grad_scale, s.old, s.fresh * s.grad_scale, s.sign};
    by_dtype(u.dtype, [&](auto zero) {
        cuda_sweep(be, "momentum", step, writes<decltype(zero)>(u), updates<float>(m), reads<float>(g));
    });
}

/* ---- second moments of updates ---------------------------------------------------------------------------------- */

struct AdaptElements {
    float beta2, eps;

    __device__ void operator()(float &out, float &v, float x) const {
        v = beta2 * v + (1.0f - beta2) * x * x;
        out = x / (sqrtf(v) + eps);
    }
};

constexpr int ADAPT_ROWS = 8; /* of a block, a warp each */

/* Row (a,b,c) of x, out and v: out and x may be the same, since a lane reads what it writes. */
template <class To, class From> struct AdaptRows {
    View<To, Access::WRITE> out;
    View<From, Access::READ> x;
    View<float, Access::UPDATE> v;
    SweepShape shape;
    float beta2, eps;
};

template <class V> CU_DEVICE typename V::Element *row_of(const V &view, SweepRow r) {
    return view.data + (r.a * view.stride[0] + r.b * view.stride[1] + r.c * view.stride[2]);
}

/* The row is read twice, the second time from cache. The lanes' sums are in order, whatever the device. */
template <int N, class To, class From>
__global__ void __launch_bounds__(ADAPT_ROWS *WARP) adapt_rows_kernel(AdaptRows<To, From> a) {
    const uint32_t number = blockIdx.x * ADAPT_ROWS + threadIdx.y;
    if (number >= a.shape.rows) return; /* the whole warp */
    const SweepRow row = sweep_row(a.shape, number);
    const From *x = row_of(a.x, row);
    To *out = row_of(a.out, row);
    float *v = row_of(a.v, row), item[N], squares = 0.0f;
    for (int64_t i = threadIdx.x * N; i < a.shape.n; i += WARP * N) {
        load_floats(item, x + i);
#pragma unroll
        for (int k = 0; k < N; k++) squares += item[k] * item[k];
    }
    squares = warp_sum(squares);
    const float second = a.beta2 * *v + (1.0f - a.beta2) * squares / static_cast<float>(a.shape.n);
    const float factor = 1.0f / (sqrtf(second) + a.eps);
    __syncwarp(); /* all have read v */
    if (threadIdx.x == 0) *v = second;
    for (int64_t i = threadIdx.x * N; i < a.shape.n; i += WARP * N) {
        load_floats(item, x + i);
#pragma unroll
        for (int k = 0; k < N; k++) item[k] *= factor;
        store_floats(out + i, item);
    }
}

/* out, x (a,b,n,m), v (a,b,n,1). */
void adapt_rows(Backend *be, Tensor out, Tensor v, Tensor x, AdaptStep s) {
    SweepShape shape = {x.shape[3], static_cast<uint32_t>(int_of(x.shape[0] * x.shape[1] * x.shape[2])),
                        static_cast<uint32_t>(x.shape[1]), static_cast<uint32_t>(x.shape[2])};
    by_dtype(out.dtype, [&](auto to) {
        by_dtype(x.dtype, [&](auto from) {
            using To = decltype(to);
            using From = decltype(from);
            constexpr int PACK = sizeof(To) == 2 || sizeof(From) == 2 ? 8 : 4;
            AdaptRows<To, From> a = {view_of<View<To, Access::WRITE>>(out),
                                     view_of<View<From, Access::READ>>(x),
                                     view_of<View<float, Access::UPDATE>>(v),
                                     shape,
                                     s.beta2,
                                     s.eps};
            const bool packs = rows_are_aligned(out) && rows_are_aligned(x) && shape.n % PACK == 0;
            auto kernel = packs ? adapt_rows_kernel<PACK, To, From> : adapt_rows_kernel<1, To, From>;
            cuda_launch(be, "adapt_rows", kernel, dim3(int_of(ceil_div(shape.rows, ADAPT_ROWS))),
                        dim3(WARP, ADAPT_ROWS), 0, a);
        });
    });
}

void adapt(Backend *be, Tensor out, Tensor v, Tensor x, AdaptStep s) {
    Tensor second = tensor_pad_4d(v), input = tensor_pad_4d(x);
    if (second.shape[3] != input.shape[3]) return adapt_rows(be, tensor_pad_4d(out), second, input, s);
    by_dtype(out.dtype, [&](auto to) {
        by_dtype(x.dtype, [&](auto from) {
            cuda_sweep(be, "adapt", AdaptElements{s.beta2, s.eps}, writes<decltype(to)>(out), updates<float>(v),
                       reads<decltype(from)>(x));
        });
    });
}

/* ---- norms of updates ------------------------------------------------------------------------------------------- */

/* factor[matrix] = 1 / (norm + eps), from the parts of its sum of squares. A warp for each matrix. */
__global__ void __launch_bounds__(WARP) factors_kernel(float *factor, const double *part, int parts, float eps) {
    double sum = 0;
    for (int i = static_cast<int>(threadIdx.x); i < parts; i += WARP)
        sum += part[static_cast<int64_t>(blockIdx.x) * parts + i];
    sum = warp_sum(sum);
    if (threadIdx.x == 0) factor[blockIdx.x] = static_cast<float>(1.0 / (sqrt(sum) + static_cast<double>(eps)));
}

struct Multiply {
    __device__ void operator()(float &out, float x, float factor) const { out = x * factor; }
};

/* out, x (a,b,n,m): at most SUMS matrices. */
void normalize_matrices(Backend *be, Tensor out, Tensor x, float eps) {
    auto *part = static_cast<double *>(cuda_scratch(be, cuda_optimizer_scratch_bytes(be, nullptr)));
    Tensor factor = x; /* one number for each matrix */
    factor.data = part + SUMS;
    factor.dtype = DTYPE_F32;
    factor.stride[0] = x.shape[1], factor.stride[1] = 1, factor.stride[2] = factor.stride[3] = 0;

    Tensor together[] = {x, factor};
    Merged m = cuda_merge(2, together); /* the factors keep matrices apart */
    int64_t matrices = x.shape[0] * x.shape[1];
    int parts = cuda_sum_squares(be, part, m, sweep_shape(m).rows / std::max<int64_t>(1, matrices));
    cuda_launch(be, "factors", factors_kernel, dim3(int_of(matrices)), dim3(WARP), 0, data_of<float>(factor), part,
                parts, eps);
    by_dtype(out.dtype, [&](auto to) {
        by_dtype(x.dtype, [&](auto from) {
            cuda_sweep(be, "normalize", Multiply(), writes<decltype(to)>(out), reads<decltype(from)>(x),
                       repeats<float>(factor));
        });
    });
}

void normalize(Backend *be, Tensor out, Tensor x, float eps) {
    Tensor to = tensor_pad_4d(out), from = tensor_pad_4d(x);
    CHECK(to.shape[1] <= SUMS, "a batch of %lld matrices", static_cast<long long>(to.shape[1]));
    int64_t step = SUMS / std::max<int64_t>(1, to.shape[1]);
    for (int64_t a = 0; a < to.shape[0]; a += step) {
        int64_t count = std::min(step, to.shape[0] - a);
        normalize_matrices(be, tensor_slice(to, 0, a, count), tensor_slice(from, 0, a, count), eps);
    }
}

/* ---- weights ---------------------------------------------------------------------------------------------------- */

/* Two kernels: with one for both, registers would not do for packs of 8. */
template <bool CAUTIOUS> struct ApplyUpdate {
    float keep, step;

    __device__ void operator()(float &w, float &w_copy, float update) const {
        w = kept(CAUTIOUS, keep, w, update) * w - step * update;
        w_copy = w;
    }
};

template <bool CAUTIOUS> void apply_update(Backend *be, Tensor w, Tensor w_copy, Tensor update, UpdateStep s) {
    by_dtype(update.dtype, [&](auto zero) {
        using T = decltype(zero);
        by_copy(w_copy, [&](auto copy) {
            cuda_sweep(be, "apply_update", ApplyUpdate<CAUTIOUS>{s.keep, s.step}, updates<float>(w), copy,
                       reads<T>(update));
        });
    });
}

void choose_apply_update(Backend *be, Tensor w, Tensor w_copy, Tensor update, UpdateStep s) {
    return s.cautious ? apply_update<true>(be, w, w_copy, update, s) : apply_update<false>(be, w, w_copy, update, s);
}

} // namespace

int64_t cuda_optimizer_scratch_bytes(const Backend *, const OpLimits *) {
    return SUMS * static_cast<int64_t>(sizeof(double) + sizeof(float)); /* sums and factors of matrices */
}

void cuda_fill_optimizer(BackendOps *ops) {
    ops->adamw = adamw;
    ops->momentum = momentum;
    ops->adapt = adapt;
    ops->normalize = normalize;
    ops->apply_update = choose_apply_update;
}
