// The names in a run directory, and what is deleted there to make room.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace llmc {

inline constexpr const char* model_file = "model.safetensors";
inline constexpr const char* optimizer_file = "optimizer.safetensors";
inline constexpr const char* state_file = "state.json";
inline constexpr const char* latest_file = "latest";
inline constexpr const char* replaced_suffix = ".replaced";
inline constexpr int64_t largest_step = 999'999'999'999'999'999;

std::string name_of_step(int64_t step);

// The step of "step-00001000" (or of "step-00001000.replaced"); -1 if the name is no checkpoint's.
int64_t step_of_name(std::string name);

struct Found {
    std::string name;
    int64_t step;
};

// Everything in the run directory that is called like a checkpoint, highest step first, complete or not.
std::vector<Found> checkpoints_in(const std::string& run);

void remove_quietly(const std::string& path);

// Removes what earlier saves left when they were killed: hidden directories and halves of `latest`.
void remove_unfinished(const std::string& run);

// After a save: deletes all but `keep` checkpoints (0: none), as save_checkpoint says.
void delete_old(const std::string& run, const std::string& written, int64_t keep);

// Before a save of this step: deletes checkpoints, with a warning, until this many bytes are free or one whole
// checkpoint is left; first those of later steps, then the oldest. is_whole is asked about directories.
void make_room(const std::string& run, int64_t step, int64_t bytes,
               const std::function<bool(const std::string&)>& is_whole);

// Bytes that the run directory's disk has free, and those of the checkpoints that are there already. Negative: unknown.
int64_t room_for_checkpoints(const std::string& run);

}  // namespace llmc
