// What becomes of a step: the decision of step_decide (ops.h), for all backends.
#pragma once
#include <math.h>  // not <cmath>: these names without std:: are those of the device too

#include "llmc/ops/host_device.h"
#include "llmc/ops/ops.h"

namespace llmc {

// From the sums of a step: gradient norm, factor of clipping (clip 0: none), whether the step counts, and Adam's
// bias corrections. A step whose loss or gradient is not finite is counted as skipped and changes nothing else. So is
// one whose gradient is too large to be squared: an infinite second moment would hold its parameter for ever.
LLMC_HOST_DEVICE inline void decide_step(StepState& s, double clip, double beta1, double beta2) {
    constexpr double largest = 1.8e19;  // its square is below 3.4e38, the largest float
    s.grad_norm = sqrt(s.grad_square_sum);
    const double scale = clip / (s.grad_norm + 1e-6);
    s.grad_scale = clip > 0 && scale < 1 ? scale : 1;
    s.ok = isfinite(s.loss_sum) && isfinite(s.grad_square_sum) && s.grad_norm * s.grad_scale <= largest;
    if (!s.ok) {
        s.skipped++;
        s.skipped_in_a_row++;
        return;
    }
    s.skipped_in_a_row = 0;
    s.total_loss_sum += s.loss_sum;
    s.total_loss_count += int64_t(s.loss_count);
    s.t++;
    s.bias_correction1 = 1 - pow(beta1, double(s.t));
    s.bias_correction2 = 1 - pow(beta2, double(s.t));
}

}  // namespace llmc
