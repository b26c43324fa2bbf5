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

struct Adamw {
    float keep, rate, root; /* of w; lr / correction1; 1 / sqrt(correction2) */
    float beta1, beta2, eps, grad_scale;

    __device__ void operator()(float &w, float &w_copy, float &m, float &v, float g) const {
        float gradient = grad_scale * g;
        m = beta1 * m + (1.0f - beta1) * gradient;
        v = beta2 * v + (1.0f - beta2) * gradient * gradient;
        w = keep * w - rate * m / (sqrtf(v) * root + eps);
        w_copy = w;
    }
};

void adamw(Backend *be, Tensor w, Tensor w_copy, Tensor m, Tensor v, Tensor g, AdamwStep s) {
    Adamw step = {1.0f - s.lr * s.decay, s.lr / s.correction1, 1.0f / sqrtf(s.correction2), s.beta1, s.beta2, s.eps,
                  s.grad_scale};
    by_copy(w_copy, [&](auto copy) {
        cuda_sweep(be, "adamw", step, updates<float>(w), copy, updates<float>(m), updates<float>(v), reads<float>(g));
    });
}

/* ---- muon ------------------------------------------------------------------------------------------------------- */

/* m = mu m + fresh g,  u = of_gradient g + of_momentum m: every form of op_momentum; grad_scale is in the weights. */
struct Momentum {
    float mu, fresh, of_gradient, of_momentum;

    __device__ void operator()(float &u, float &m, float g) const {
        m = mu * m + fresh * g;
        u = of_momentum * m + of_gradient * g;
    }
};

Momentum momentum_of(MomentumStep s) {
    float fresh = (s.form == MOMENTUM_EMA ? 1.0f - s.mu : 1.0f) * s.grad_scale;
    if (s.nesterov) return {s.mu, fresh, fresh, s.mu};
    return {s.mu, fresh, 0.0f, 1.0f};
}

void momentum(Backend *be, Tensor u, Tensor m, Tensor g, MomentumStep s) {
    by_dtype(u.dtype, [&](auto zero) {
        cuda_sweep(be, "momentum", momentum_of(s), writes<decltype(zero)>(u), updates<float>(m), reads<float>(g));
    });
}

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

struct ApplyUpdate {
    float keep, step;

    __device__ void operator()(float &w, float &w_copy, float update) const {
        w = keep * w - step * update;
        w_copy = w;
    }
};

void apply_update(Backend *be, Tensor w, Tensor w_copy, Tensor update, float keep, float step) {
    by_dtype(update.dtype, [&](auto zero) {
        using T = decltype(zero);
        by_copy(w_copy, [&](auto copy) {
            cuda_sweep(be, "apply_update", ApplyUpdate{keep, step}, updates<float>(w), copy, reads<T>(update));
        });
    });
}

} // namespace

int64_t cuda_optimizer_scratch_bytes(const Backend *, const OpLimits *) {
    return SUMS * static_cast<int64_t>(sizeof(double) + sizeof(float)); /* sums and factors of matrices */
}

void cuda_fill_optimizer_ops(BackendOps *ops) {
    ops->adamw = adamw;
    ops->momentum = momentum;
    ops->normalize = normalize;
    ops->apply_update = apply_update;
}
