#include "llmc/step/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "llmc/base/errors.h"

namespace llmc {

void check_schedule(const Schedule& s) {
    if (!(s.peak > 0) || !std::isfinite(s.peak))
        input_error("the learning rate is ", s.peak, ": give a finite number above 0");
    if (!(s.final_fraction >= 0 && s.final_fraction <= 1))
        input_error("the final learning rate is ", s.final_fraction, " of the peak: give a fraction from 0 to 1");
    if (s.warmup_steps < 0) input_error("the warm-up has ", s.warmup_steps, " steps: give 0 or more");
    if (s.final_step < s.origin + s.warmup_steps)
        input_error("the learning rate would reach its final value at step ", s.final_step, ", before its warm-up of ",
                    s.warmup_steps, " steps", s.origin ? str(" from step ", s.origin) : "",
                    " ends: shorten the warm-up or move the final step");
}

double learning_rate(const Schedule& s, int64_t step) {
    const int64_t warm = s.origin + s.warmup_steps, since = std::max<int64_t>(0, step - s.origin);
    if (step < warm) return s.peak * double(since + 1) / double(s.warmup_steps);
    if (step >= s.final_step) return s.peak * s.final_fraction;
    double progress = double(step - warm) / double(s.final_step - warm);
    return s.peak * (s.final_fraction + (1 - s.final_fraction) / 2 * (1 + std::cos(std::numbers::pi * progress)));
}

}  // namespace llmc
