/* Spectra of all hidden matrices, and what follows from their singular values: how far updates are from orthogonal, the
 * sizes of weights and updates. Private to run/.
 */
#pragma once

#include <cjson/cJSON.h>

#include "optim/optimizer.h"
#include "probe/spectrum.h"

typedef struct Trainer Trainer;

void measure_spectra_update(SpectrumProbe *probe, const UpdateEvent *event);  /* momentum and update */
void measure_spectra_weights(SpectrumProbe *probe, const ParamTable *params); /* of all; ends the step */
