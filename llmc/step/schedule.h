// Learning rate of a step: linear warm-up, then half a cosine down to a fraction of the peak, then constant.
#pragma once
#include <cstdint>

namespace llmc {

struct Schedule {
    double peak = 1e-3;            // learning rate at the end of the warm-up
    int64_t warmup_steps = 0;      // w
    int64_t final_step = 0;        // T: from this step on the rate is constant
    double final_fraction = 0.1;   // f: the final rate as a fraction of the peak
    int64_t origin = 0;            // o: step where the warm-up begins; earlier steps have the rate of step o
};

// InputError naming the number that is out of range.
void check_schedule(const Schedule& schedule);

// The learning rate of step s = 0, 1, ...
//   s < o + w:        peak (s - o + 1) / w
//   o + w <= s < T:   peak (f + (1 - f) / 2 (1 + cos(pi (s - o - w) / (T - o - w))))
//   s >= T:           peak f
double learning_rate(const Schedule& schedule, int64_t step);

}  // namespace llmc
