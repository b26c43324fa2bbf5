/* Tensor views and bf16 rounding. */
#include "tests/tensors.h"

#include <float.h>
#include <math.h>

#include "ops/tensor.h"

static float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* ---- views ------------------------------------------------------------------------------------------------------ */

static void a_fresh_tensor_is_contiguous_and_row_major(void **state) {
    (void)state;
    float data[24];
    Tensor t = tensor_3d(data, DTYPE_F32, 2, 3, 4);
    assert_int_equal(t.stride[0], 12);
    assert_int_equal(t.stride[1], 4);
    assert_int_equal(t.stride[2], 1);
    assert_true(tensor_is_contiguous(t));
    assert_int_equal(tensor_numel(t), 24);
    assert_int_equal(tensor_bytes(t), 96);
}

static void a_slice_is_a_window_with_the_strides_of_the_whole(void **state) {
    (void)state;
    float data[40];
    Tensor t = tensor_slice(tensor_slice(tensor_2d(data, DTYPE_F32, 5, 8), 0, 1, 3), 1, 2, 4);
    assert_ptr_equal(t.data, data + 8 + 2);
    assert_int_equal(t.shape[0], 3);
    assert_int_equal(t.shape[1], 4);
    assert_int_equal(t.stride[0], 8);
    assert_false(tensor_is_contiguous(t));
}

static void a_slice_of_half_width_elements_moves_by_half_the_bytes(void **state) {
    (void)state;
    bf16 data[10];
    assert_ptr_equal(tensor_slice(tensor_1d(data, DTYPE_BF16, 10), 0, 3, 2).data, data + 3);
}

static void an_index_drops_the_first_dimension(void **state) {
    (void)state;
    float data[24];
    Tensor t = tensor_index(tensor_3d(data, DTYPE_F32, 2, 3, 4), 1);
    assert_int_equal(t.ndim, 2);
    assert_ptr_equal(t.data, data + 12);
    assert_int_equal(t.shape[0], 3);
    assert_int_equal(t.stride[0], 4);
}

static void a_transpose_swaps_the_last_two_dimensions_only(void **state) {
    (void)state;
    float data[24];
    Tensor t = tensor_transpose(tensor_3d(data, DTYPE_F32, 2, 3, 4));
    assert_int_equal(t.shape[0], 2);
    assert_int_equal(t.shape[1], 4);
    assert_int_equal(t.shape[2], 3);
    assert_int_equal(t.stride[1], 1);
    assert_int_equal(t.stride[2], 4);
    assert_false(tensor_is_contiguous(t));
}

static void dimensions_of_size_one_may_have_any_stride_in_a_contiguous_tensor(void **state) {
    (void)state;
    float data[24];
    Tensor t = tensor_slice(tensor_2d(data, DTYPE_F32, 6, 4), 0, 2, 1);
    t.stride[0] = 1000;
    assert_true(tensor_is_contiguous(t));
}

static void padding_to_four_dimensions_reaches_the_same_elements(void **state) {
    (void)state;
    float data[40];
    Tensor view = tensor_slice(tensor_2d(data, DTYPE_F32, 5, 8), 1, 2, 4), t = tensor_pad_4d(view);
    assert_int_equal(t.ndim, 4);
    assert_int_equal(tensor_numel(t), tensor_numel(view));
    assert_ptr_equal(t.data, view.data);
    assert_int_equal(t.stride[2], 8);
    assert_int_equal(t.stride[3], 1);
}

static void an_absent_tensor_stays_absent_through_its_views(void **state) {
    (void)state;
    assert_false(tensor_present(tensor_none()));
    assert_false(tensor_present(tensor_slice(tensor_2d(NULL, DTYPE_F32, 4, 4), 0, 2, 1)));
}

static void a_description_names_dtype_and_shape_and_fits_its_buffer(void **state) {
    (void)state;
    char text[32], small[6];
    assert_string_equal(tensor_describe(tensor_2d(NULL, DTYPE_BF16, 4, 8), text, sizeof text), "bf16 (4,8)");
    assert_string_equal(tensor_describe(tensor_2d(NULL, DTYPE_BF16, 4, 8), small, sizeof small), "bf16 ");
}

/* ---- bf16 ------------------------------------------------------------------------------------------------------- */

static void every_bf16_survives_the_way_through_fp32(void **state) {
    (void)state;
    for (uint32_t h = 0; h <= 0xffff; h++) {
        float value = bf16_to_f32((bf16)h);
        bf16 back = bf16_from_f32(value);
        if (isnan(value))
            assert_true(isnan(bf16_to_f32(back)));
        else
            assert_int_equal(back, h);
    }
}

static void bf16_rounds_to_nearest_and_ties_to_even(void **state) {
    (void)state;
    const struct {
        uint32_t bits;
        bf16 expected;
    } cases[] = {
        {0x3f808000, 0x3f80}, /* a tie above an even one goes down */
        {0x3f818000, 0x3f82}, /* a tie above an odd one goes up */
        {0x3f807fff, 0x3f80}, {0x3f808001, 0x3f81}, {0xbf808000, 0xbf80},
        {0xbf818000, 0xbf82}, {0x3fffffff, 0x4000}, /* carries into the exponent */
        {0x00000001, 0x0000}, {0x00018000, 0x0002}, /* subnormals */
        {0x80000000, 0x8000},                       /* -0 */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_int_equal(bf16_from_f32(from_bits(cases[i].bits)), cases[i].expected);
}

static void bf16_keeps_infinities_and_overflows_to_them(void **state) {
    (void)state;
    assert_int_equal(bf16_from_f32(INFINITY), 0x7f80);
    assert_int_equal(bf16_from_f32(-INFINITY), 0xff80);
    assert_int_equal(bf16_from_f32(FLT_MAX), 0x7f80);
    assert_int_equal(bf16_from_f32(-FLT_MAX), 0xff80);
}

/* Cut off, the payload of the first is 0: an infinity. Rounded up, the second becomes -0. */
static void bf16_keeps_every_nan_a_nan(void **state) {
    (void)state;
    const uint32_t nans[] = {0x7f800001, 0x7fffffff, 0xff800001, 0xffffffff, 0x7fc00000};
    for (size_t i = 0; i < sizeof nans / sizeof nans[0]; i++)
        assert_true(isnan(bf16_to_f32(bf16_from_f32(from_bits(nans[i])))));
}

/* ---- merging ---------------------------------------------------------------------------------------------------- */

static void assert_layout(Tensor t, const int64_t *shape, const int64_t *stride) {
    for (int i = 0; i < 4; i++) {
        assert_int_equal(t.shape[i], shape[i]);
        if (shape[i] > 1) assert_int_equal(t.stride[i], stride[i]);
    }
}

static void contiguous_tensors_merge_into_one_row(void **state) {
    (void)state;
    float data[120];
    Tensor t[] = {tensor_4d(data, DTYPE_F32, 2, 3, 4, 5), tensor_4d(NULL, DTYPE_F32, 2, 3, 4, 5)};
    tensors_merge(t, 2); /* the absent one is in nobody's way */
    assert_layout(t[0], (int64_t[]){1, 1, 1, 120}, (int64_t[]){0, 0, 0, 1});
}

static void what_one_tensor_keeps_apart_stays_apart_in_all(void **state) {
    (void)state;
    float data[200];
    Tensor whole = tensor_4d(data, DTYPE_F32, 2, 3, 4, 5);
    Tensor view = tensor_slice(tensor_4d(data, DTYPE_F32, 2, 3, 4, 8), 3, 0, 5); /* rows of 5 in rows of 8 */
    Tensor t[] = {whole, view};
    tensors_merge(t, 2);
    assert_layout(t[0], (int64_t[]){1, 1, 24, 5}, (int64_t[]){0, 0, 5, 1});
    assert_layout(t[1], (int64_t[]){1, 1, 24, 5}, (int64_t[]){0, 0, 8, 1});
}

/* A last dimension of one element may have any stride; were it taken for that of a row, the row would be another. */
static void a_column_is_no_row_of_its_stride(void **state) {
    (void)state;
    float data[35];
    Tensor column = tensor_pad_4d(tensor_slice(tensor_2d(data, DTYPE_F32, 5, 7), 1, 0, 1));
    column.stride[3] = 7;
    tensors_merge(&column, 1);
    assert_layout(column, (int64_t[]){1, 1, 5, 1}, (int64_t[]){0, 0, 7, 1});
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_fresh_tensor_is_contiguous_and_row_major),
        cmocka_unit_test(a_slice_is_a_window_with_the_strides_of_the_whole),
        cmocka_unit_test(a_slice_of_half_width_elements_moves_by_half_the_bytes),
        cmocka_unit_test(an_index_drops_the_first_dimension),
        cmocka_unit_test(a_transpose_swaps_the_last_two_dimensions_only),
        cmocka_unit_test(dimensions_of_size_one_may_have_any_stride_in_a_contiguous_tensor),
        cmocka_unit_test(padding_to_four_dimensions_reaches_the_same_elements),
        cmocka_unit_test(an_absent_tensor_stays_absent_through_its_views),
        cmocka_unit_test(a_description_names_dtype_and_shape_and_fits_its_buffer),
        cmocka_unit_test(every_bf16_survives_the_way_through_fp32),
        cmocka_unit_test(contiguous_tensors_merge_into_one_row),
        cmocka_unit_test(what_one_tensor_keeps_apart_stays_apart_in_all),
        cmocka_unit_test(a_column_is_no_row_of_its_stride),
        cmocka_unit_test(bf16_rounds_to_nearest_and_ties_to_even),
        cmocka_unit_test(bf16_keeps_infinities_and_overflows_to_them),
        cmocka_unit_test(bf16_keeps_every_nan_a_nan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
