/* The matrix product by oneDNN (C API 2.x).
 *
 * A primitive is made once for every combination of shapes, strides, dtypes and scales, which takes about a millisecond
 * of code generation, and kept with its memory objects in a hash table; a call then only sets the pointers. Should a
 * caller go through more combinations than the table takes, the table is emptied and starts again.
 *
 * The addend is fused: as "sum" where it is the output itself, else as a binary post-op, in the order that oneDNN has:
 *
 *      out = (a·b + bias) scale  -> sum:     + beta out
 *                                -> binary:  + addend, then times beta        (scale = alpha / beta)
 *
 * The bias is inside the scale there, so it is only given with alpha = 1 and beta = 1 or no addend, which is all that
 * op_linear needs.
 */
#if HAVE_ONEDNN

#include <stdio.h>
#include <stdlib.h>

#include <dnnl.h>

#include "cpu/cpu.h"

enum { SLOTS = 1024, FULL = SLOTS * 3 / 4 };

typedef enum { ADDEND_NONE, ADDEND_OUT, ADDEND_OTHER } Addend;

/* Everything that a primitive depends on. Compared and hashed as bytes: always starts from zeroed memory. */
typedef struct {
    dnnl_dim_t out_shape[4], a_shape[4], b_shape[4];
    dnnl_dim_t out_stride[4], a_stride[4], b_stride[4], addend_stride[4];
    DType dtype, out_dtype;
    Addend addend;
    int ndim;
    bool bias;
    float alpha, beta;
} Key;

typedef enum { ARG_A, ARG_B, ARG_OUT, ARG_BIAS, ARG_ADDEND, ARG_SCRATCHPAD, ARG_COUNT } Arg;

static const int arg_ids[ARG_COUNT] = {
    [ARG_A] = DNNL_ARG_SRC,
    [ARG_B] = DNNL_ARG_WEIGHTS,
    [ARG_OUT] = DNNL_ARG_DST,
    [ARG_BIAS] = DNNL_ARG_BIAS,
    [ARG_ADDEND] = DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1,
    [ARG_SCRATCHPAD] = DNNL_ARG_SCRATCHPAD,
};

typedef struct {
    Key key;
    dnnl_primitive_t primitive; /* NULL: a free slot */
    dnnl_memory_t memory[ARG_COUNT];
} Slot;

/* The scratchpad is shared by all primitives and lies on huge pages: packed matrices fill the second-level cache, and
 * on scattered small pages they collide there. */
typedef struct {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    char fp32[64], bf16[64]; /* names of the code that multiplies them; bf16 is "" where nothing does */
    int used;
    void *scratchpad;
    size_t scratchpad_bytes;
    Slot slots[SLOTS];
} Library;

/* ---- keys ------------------------------------------------------------------------------------------------------- */

/* The stride of a dimension of size 1 says nothing, but oneDNN wants one that fits the others. */
static void canonical_strides(Tensor x, dnnl_dim_t *stride) {
    int row = x.ndim - 2, column = x.ndim - 1;
    for (int i = 0; i < x.ndim; i++) stride[i] = x.stride[i];
    if (x.shape[column] == 1) stride[column] = x.stride[row] == 1 ? x.shape[row] : 1;
    if (x.shape[row] == 1) stride[row] = stride[column] == 1 ? x.shape[column] : 1;
}

static Key key_of(const Product *p) {
    Key key;
    memset(&key, 0, sizeof key);
    key.ndim = p->out.ndim;
    key.dtype = p->a.dtype;
    key.out_dtype = p->out.dtype;
    key.alpha = p->alpha;
    key.beta = p->beta;
    key.bias = tensor_present(p->bias);
    key.addend = !tensor_present(p->addend) ? ADDEND_NONE : p->addend.data == p->out.data ? ADDEND_OUT : ADDEND_OTHER;
    for (int i = 0; i < key.ndim; i++) {
        key.out_shape[i] = p->out.shape[i];
        key.a_shape[i] = p->a.shape[i];
        key.b_shape[i] = p->b.shape[i];
    }
    canonical_strides(p->out, key.out_stride);
    canonical_strides(p->a, key.a_stride);
    canonical_strides(p->b, key.b_stride);
    if (key.addend == ADDEND_OTHER) canonical_strides(p->addend, key.addend_stride);
    return key;
}

static uint64_t hash_of(const Key *key) { /* FNV-1a */
    const unsigned char *bytes = (const unsigned char *)key;
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < sizeof *key; i++) hash = (hash ^ bytes[i]) * 1099511628211u;
    return hash;
}

/* The slot that holds the key, or the free one where it belongs. */
static Slot *find(Library *lib, const Key *key) {
    for (uint64_t i = hash_of(key);; i++) {
        Slot *slot = &lib->slots[i % SLOTS];
        if (!slot->primitive || memcmp(&slot->key, key, sizeof *key) == 0) return slot;
    }
}

/* ---- primitives ------------------------------------------------------------------------------------------------- */

static dnnl_data_type_t type_of(DType dtype) {
    return dtype == DTYPE_BF16 ? dnnl_bf16 : dnnl_f32;
}

typedef struct {
    dnnl_memory_desc_t a, b, out, bias, addend;
} Layouts;

static dnnl_status_t describe(const Key *key, Layouts *l) {
    memset(l, 0, sizeof *l);
    dnnl_data_type_t in = type_of(key->dtype), out = type_of(key->out_dtype);
    dnnl_dims_t dims[3] = {{0}}, strides[4] = {{0}}, bias_dims = {1, 1, 1, 1}, bias_strides;
    size_t bytes = sizeof key->a_shape;
    memcpy(dims[0], key->a_shape, bytes), memcpy(strides[0], key->a_stride, bytes);
    memcpy(dims[1], key->b_shape, bytes), memcpy(strides[1], key->b_stride, bytes);
    memcpy(dims[2], key->out_shape, bytes), memcpy(strides[2], key->out_stride, bytes);
    memcpy(strides[3], key->addend_stride, bytes);
    bias_dims[key->ndim - 1] = key->out_shape[key->ndim - 1];
    for (int i = 0; i < key->ndim; i++) bias_strides[i] = i == key->ndim - 1 ? 1 : bias_dims[key->ndim - 1];

    dnnl_status_t status = dnnl_memory_desc_init_by_strides(&l->a, key->ndim, dims[0], in, strides[0]);
    if (!status) status = dnnl_memory_desc_init_by_strides(&l->b, key->ndim, dims[1], in, strides[1]);
    if (!status) status = dnnl_memory_desc_init_by_strides(&l->out, key->ndim, dims[2], out, strides[2]);
    if (!status && key->bias)
        status = dnnl_memory_desc_init_by_strides(&l->bias, key->ndim, bias_dims, dnnl_f32, bias_strides);
    if (!status && key->addend == ADDEND_OTHER)
        status = dnnl_memory_desc_init_by_strides(&l->addend, key->ndim, dims[2], out, strides[3]);
    return status;
}

static dnnl_status_t set_scales(dnnl_primitive_attr_t attr, dnnl_post_ops_t post, const Key *key, const Layouts *l) {
    float scale = key->addend == ADDEND_OTHER ? key->alpha / key->beta : key->alpha;
    dnnl_status_t status = dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    if (!status && scale != 1) status = dnnl_primitive_attr_set_output_scales(attr, 1, 0, &scale);
    if (!status && key->addend == ADDEND_OUT) status = dnnl_post_ops_append_sum(post, key->beta);
    if (!status && key->addend == ADDEND_OTHER) {
        status = dnnl_post_ops_append_binary(post, dnnl_binary_add, &l->addend);
        if (!status && key->beta != 1)
            status = dnnl_post_ops_append_eltwise(post, 1, dnnl_eltwise_linear, key->beta, 0);
    }
    return status ? status : dnnl_primitive_attr_set_post_ops(attr, post);
}

static dnnl_status_t make_primitive_desc(Library *lib, const Key *key, const Layouts *l, dnnl_primitive_desc_t *pd) {
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t post = NULL;
    dnnl_matmul_desc_t matmul;
    dnnl_status_t status = dnnl_primitive_attr_create(&attr);
    if (!status) status = dnnl_post_ops_create(&post);
    if (!status) status = set_scales(attr, post, key, l);
    if (!status) status = dnnl_matmul_desc_init(&matmul, &l->a, &l->b, key->bias ? &l->bias : NULL, &l->out);
    if (!status) status = dnnl_primitive_desc_create(pd, &matmul, attr, lib->engine, NULL);
    dnnl_post_ops_destroy(post);
    dnnl_primitive_attr_destroy(attr);
    return status;
}

static void destroy_slot(Slot *slot) {
    for (int i = 0; i < ARG_COUNT; i++)
        if (slot->memory[i]) dnnl_memory_destroy(slot->memory[i]);
    if (slot->primitive) dnnl_primitive_destroy(slot->primitive);
    memset(slot, 0, sizeof *slot);
}

static dnnl_status_t make_memory(Library *lib, Slot *slot, const Layouts *l, const dnnl_memory_desc_t *scratchpad) {
    const dnnl_memory_desc_t *layouts[ARG_COUNT] = {
        [ARG_A] = &l->a,
        [ARG_B] = &l->b,
        [ARG_OUT] = &l->out,
        [ARG_BIAS] = slot->key.bias ? &l->bias : NULL,
        [ARG_ADDEND] = slot->key.addend == ADDEND_OTHER ? &l->addend : NULL,
        [ARG_SCRATCHPAD] = scratchpad,
    };
    dnnl_status_t status = dnnl_success;
    for (int i = 0; i < ARG_COUNT && !status; i++)
        if (layouts[i]) status = dnnl_memory_create(&slot->memory[i], layouts[i], lib->engine, DNNL_MEMORY_NONE);
    return status;
}

static dnnl_status_t grow_scratchpad(Library *lib, size_t bytes) {
    if (bytes <= lib->scratchpad_bytes) return dnnl_success;
    free(lib->scratchpad);
    lib->scratchpad = cpu_alloc((int64_t)bytes);
    lib->scratchpad_bytes = lib->scratchpad ? bytes : 0;
    return lib->scratchpad ? dnnl_success : dnnl_out_of_memory;
}

/* Fills a free slot. After a failure it is free again. */
static dnnl_status_t make_slot(Library *lib, Slot *slot, const Key *key) {
    Layouts layouts;
    dnnl_primitive_desc_t pd = NULL;
    slot->key = *key;
    dnnl_status_t status = describe(key, &layouts);
    if (!status) status = make_primitive_desc(lib, key, &layouts, &pd);
    if (!status) {
        const dnnl_memory_desc_t *scratchpad = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
        status = grow_scratchpad(lib, dnnl_memory_desc_get_size(scratchpad));
        if (!status) status = make_memory(lib, slot, &layouts, scratchpad);
        if (!status) status = dnnl_primitive_create(&slot->primitive, pd);
    }
    if (pd) dnnl_primitive_desc_destroy(pd);
    if (status) destroy_slot(slot);
    return status;
}

static dnnl_status_t execute(Library *lib, Slot *slot, const Product *p) {
    void *data[ARG_COUNT] = {
        [ARG_A] = p->a.data,       [ARG_B] = p->b.data,           [ARG_OUT] = p->out.data,
        [ARG_BIAS] = p->bias.data, [ARG_ADDEND] = p->addend.data, [ARG_SCRATCHPAD] = lib->scratchpad,
    };
    dnnl_exec_arg_t args[ARG_COUNT];
    dnnl_status_t status = dnnl_success;
    int count = 0;
    for (int i = 0; i < ARG_COUNT && !status; i++) {
        if (!slot->memory[i]) continue;
        status = dnnl_memory_set_data_handle(slot->memory[i], data[i]);
        args[count++] = (dnnl_exec_arg_t){arg_ids[i], slot->memory[i]};
    }
    if (!status) status = dnnl_primitive_execute(slot->primitive, lib->stream, count, args);
    return status ? status : dnnl_stream_wait(lib->stream);
}

void cpu_library_multiply(Backend *be, const Product *p) {
    Library *lib = be->state;
    Key key = key_of(p);
    if (lib->used >= FULL) {
        for (int i = 0; i < SLOTS; i++) destroy_slot(&lib->slots[i]);
        lib->used = 0;
    }
    Slot *slot = find(lib, &key);
    dnnl_status_t status = dnnl_success;
    if (!slot->primitive) {
        status = make_slot(lib, slot, &key);
        lib->used += !status;
    }
    if (!status) status = execute(lib, slot, p);
    if (status)
        backend_fail(be, "matmul",
                     status_error(status == dnnl_out_of_memory ? STATUS_OUT_OF_MEMORY : STATUS_DEVICE,
                                  "oneDNN cannot multiply %lld x %lld x %lld matrices (error %d)",
                                  (long long)p->out.shape[p->out.ndim - 2], (long long)p->a.shape[p->a.ndim - 1],
                                  (long long)p->out.shape[p->out.ndim - 1], (int)status));
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

/* What oneDNN would multiply two square matrices of this dtype with, e.g. "brg:avx512_core_bf16"; "" if with nothing.
 */
static void name_implementation(Library *lib, DType dtype, char *name, size_t size) {
    enum { SIDE = 256 };
    Tensor x = tensor_2d(NULL, dtype, SIDE, SIDE), none = tensor_none();
    Key key = key_of(&(Product){.out = x, .a = x, .b = x, .addend = none, .bias = none, .alpha = 1});
    Layouts layouts;
    dnnl_primitive_desc_t pd = NULL;
    const char *implementation = "";
    if (!describe(&key, &layouts) && !make_primitive_desc(lib, &key, &layouts, &pd))
        dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &implementation);
    snprintf(name, size, "%s", implementation);
    if (pd) dnnl_primitive_desc_destroy(pd);
}

Status cpu_library_open(Backend *be) {
    Library *lib = calloc(1, sizeof *lib);
    if (!lib) return NO_MEMORY("no memory for oneDNN's primitives");
    if (dnnl_engine_create(&lib->engine, dnnl_cpu, 0) ||
        dnnl_stream_create(&lib->stream, lib->engine, dnnl_stream_default_flags)) {
        if (lib->engine) dnnl_engine_destroy(lib->engine);
        free(lib);
        return status_error(STATUS_DEVICE, "oneDNN does not start on this processor");
    }
    name_implementation(lib, DTYPE_F32, lib->fp32, sizeof lib->fp32);
    name_implementation(lib, DTYPE_BF16, lib->bf16, sizeof lib->bf16);
    be->state = lib;
    return status_ok();
}

void cpu_library_close(Backend *be) {
    Library *lib = be->state;
    for (int i = 0; i < SLOTS; i++) destroy_slot(&lib->slots[i]);
    dnnl_stream_destroy(lib->stream);
    dnnl_engine_destroy(lib->engine);
    free(lib->scratchpad);
    free(lib);
    be->state = NULL;
}

bool cpu_library_multiplies(const Backend *be, DType dtype) {
    const Library *lib = be->state;
    return dtype == DTYPE_F32 || lib->bf16[0];
}

void cpu_library_describe(const Backend *be, char *text, size_t size) {
    const Library *lib = be->state;
    const dnnl_version_t *version = dnnl_version();
    bool direct = be->compute_dtype == DTYPE_BF16 && lib->bf16[0], detour = be->compute_dtype == DTYPE_BF16 && !direct;
    snprintf(text, size, "oneDNN %d.%d (%s%s)", version->major, version->minor, direct ? lib->bf16 : lib->fp32,
             detour ? "; bf16 through fp32" : "");
}

#endif
