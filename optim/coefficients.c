/* The numbers of the sets that base/config.h lists. */
#include "optim/coefficients.h"

#include <string.h>

/* Intervals are rounded outwards to three digits. */
/* clang-format off */
const CoefficientSet coefficient_sets[] = {
    [COEFFICIENTS_MUON] = {"Jordan et al. 2024, Muon", .681, 1.135, 1, {
        {3.4445, -4.7750, 2.0315}}},
    [COEFFICIENTS_SU] = {"Su Jianlin, one triple", .821, 1.183, 1, {
        {3.3748, -4.6969, 2.1433}}},
    [COEFFICIENTS_TAYLOR] = {"Taylor expansion of degree 5 (Kenney & Laub 1991)", .228, 1, 1, {
        {15. / 8, -10. / 8, 3. / 8}}},
    [COEFFICIENTS_CUBIC] = {"Newton-Schulz proper (Higham 2008, chapter 8)", .0758, 1, 1, {
        {1.5, -.5, 0}}},
    [COEFFICIENTS_YOU_5] = {"You Jiacheng, one triple per iteration", .977, 1.032, 5, {
        {4.0848, -6.8946, 2.9270},
        {3.9505, -6.3029, 2.6377},
        {3.7418, -5.5913, 2.3037},
        {2.8769, -3.1427, 1.2046},
        {2.8366, -3.0525, 1.2012}}},
    [COEFFICIENTS_SU_5] = {"Su Jianlin, one triple per iteration", .950, 1.050, 5, {
        {4.6182, -12.9582, 9.3299},
        {3.8496, -7.9585, 4.3052},
        {3.5204, -7.2918, 4.0606},
        {3.2067, -6.8243, 4.2802},
        {3.2978, -5.7848, 3.8917}}},
    [COEFFICIENTS_POLAR_EXPRESS] = {"Amsel et al. 2025, l = 1e-3, safety 1.02 included", .858, 1.142, 5, {
        {8.156554524902461, -22.48329292557795, 15.878769915207462},
        {4.042929935166739, -2.808917465908714, .5000178451051316},
        {3.8916678022926607, -2.772484153217685, .5060648178503393},
        {3.285753657755655, -2.3681294933425376, .46449024233003106},
        {2.3465413258596377, -1.7097828382687081, .42323551169305323}}},
    [COEFFICIENTS_CANS] = {"Grishina et al. 2025, CANS", .884, 1.120, 5, {
        {8.4703, -25.1081, 18.6293},
        {4.1828, -3.1087, .5806},
        {3.9619, -2.9541, .5630},
        {3.2866, -2.4647, .5074},
        {2.2737, -1.6447, .4162}}},
    [COEFFICIENTS_DEEPSEEK_V4] = {"DeepSeek-V4: 8 times muon, then to 1 and flat there", .999, 1.001, 10, {
        {3.4445, -4.7750, 2.0315}, {3.4445, -4.7750, 2.0315},
        {3.4445, -4.7750, 2.0315}, {3.4445, -4.7750, 2.0315},
        {3.4445, -4.7750, 2.0315}, {3.4445, -4.7750, 2.0315},
        {3.4445, -4.7750, 2.0315}, {3.4445, -4.7750, 2.0315},
        {2, -1.5, .5}, {2, -1.5, .5}}},
};
/* clang-format on */

_Static_assert(sizeof coefficient_sets / sizeof *coefficient_sets == COEFFICIENTS_COUNT, "a set without numbers");

#define COEFFICIENTS_NAME(ID, name) name,
static const char *const names[] = {COEFFICIENT_LIST(COEFFICIENTS_NAME)};

const char *coefficient_set_name(const CoefficientSet *set) {
    return names[set - coefficient_sets];
}

const CoefficientSet *coefficient_set_find(const char *name) {
    for (int i = 0; i < COEFFICIENTS_COUNT; i++)
        if (strcmp(names[i], name) == 0) return &coefficient_sets[i];
    return NULL;
}
