/* ./train_gpt fit-coefficients: the fit, its figures, and a picture of the composed polynomial. */
#include <math.h>
#include <string.h>

#include "run/commands.h"

/* What becomes of a singular value between 10^-DECADES and 1, on a logarithmic axis:
 *
 *      1.20 |                  ********
 *           |              ****
 *      0.00 |***************
 *           +--------------------------
 *           0.0001    0.01            1
 */
enum { DECADES = 4, COLUMNS_PER_DECADE = 16, COLUMNS = DECADES * COLUMNS_PER_DECADE + 1, LINES = 16 };

static double column_value(int column) {
    return pow(10, (double)column / COLUMNS_PER_DECADE - DECADES);
}

static void plot(const Fit *fit, int64_t iterations) {
    char picture[LINES + 1][COLUMNS + 1];
    const double top = 1.25;
    memset(picture, ' ', sizeof picture);
    for (int c = 0; c < COLUMNS; c++) {
        double y = fit_polynomial(fit, iterations, column_value(c));
        int line = (int)lround(LINES * y / top);
        if (line >= 0 && line <= LINES) picture[line][c] = '*';
    }
    printf("\nafter %lld iterations\n", (long long)iterations);
    for (int line = LINES; line >= 0; line--) {
        picture[line][COLUMNS] = '\0';
        if (line % 4 == 0)
            printf("%6.2f |%s\n", top * line / LINES, picture[line]);
        else
            printf("       |%s\n", picture[line]);
    }
    printf("       +");
    for (int c = 0; c < COLUMNS; c++) putchar(c % COLUMNS_PER_DECADE ? '-' : '+');
    printf("\n        %-*g%-*g%-*g%-*g1   singular value / Frobenius norm\n", COLUMNS_PER_DECADE, 1e-4,
           COLUMNS_PER_DECADE, 1e-3, COLUMNS_PER_DECADE, 1e-2, COLUMNS_PER_DECADE, 1e-1);
}

Status command_fit_coefficients(const CommandLine *line) {
    FitRequest request = line->fit;
    Fit fit;
    Status status;
    if (FAILED(status, fit_parse_shapes(&request, line->fit_shapes))) return status;
    if (FAILED(status, fit_coefficients(&fit, &request))) return status;

    printf("%lld random matrices of each of %s, seed %lld: singular values from %.2e to %.4f of the Frobenius norm\n",
           (long long)request.samples, line->fit_shapes, (long long)request.seed, fit.least, fit.greatest);
    printf("kappa %.6f  x1 %.6f  x2 %.6f\n", fit.kappa, fit.x1, fit.x2);
    printf("a %.4f  b %.4f  c %.4f, %lld iterations\n", fit.a, fit.b, fit.c, (long long)request.iterations);
    printf("mean squared distance from 1: %.6f (with the set \"muon\": %.6f)\n", fit.objective, fit.published);
    printf("the samples land in [%.4f, %.4f]\n", fit.low, fit.high);
    printf("to train with it: 'optimizer.muon.coefficients=[[%.4f,%.4f,%.4f]]' optimizer.muon.iterations=%lld\n", fit.a,
           fit.b, fit.c, (long long)request.iterations);
    plot(&fit, request.iterations);
    return status;
}
