// Checkpoints on disk. This file knows tensors and files, not models.
//
//   RUN/step-00001000/model.safetensors      parameters, readable by any tool of that format
//                     optimizer.safetensors  what else training needs
//                     state.json             format_version, step, everything the caller gave; size of both files and a
//                                            CRC-32 of every tensor; a CRC-32 of itself
//   RUN/latest                               the name of the directory to resume from
//
// Several processes write their own parts of the two files, all at once; the files do not tell how many there were. The
// run directory must be one that all of them see.
//
// Whatever happens while saving (kill, power cut, full disk), a checkpoint that `latest` named before stays loadable
// until a newer one is complete: a directory is written beside under a hidden name, synced, and only then renamed; then
// `latest` is replaced; only then are old checkpoints deleted.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "llmc/comm/comm.h"
#include "llmc/ops/ops.h"

namespace llmc {

inline constexpr const char* model_file = "model.safetensors";
inline constexpr const char* optimizer_file = "optimizer.safetensors";

// Saves these contiguous tensors under RUN/step-<step> and returns that directory. An older checkpoint of the same step
// is replaced. Then deletes all but `keep` checkpoints (0: deletes none): first those of later steps, which the run
// that now passes this step has abandoned, then the oldest; never the one just written. `state` is a JSON object; the
// keys format_version, step, files and checksum are taken. RunError if it cannot be written (disk full, no permission):
// then the checkpoint to resume from is still the one before, and saving can be tried again.
// world: its ranks call this together, each with the parts of all tensors that it owns, and fail together.
std::string save_checkpoint(const std::string& run_directory, int64_t step, const std::vector<NamedTensor>& model,
                            const std::vector<NamedTensor>& optimizer, const nlohmann::json& state, int64_t keep,
                            Context& ctx, World* world = nullptr);

struct Checkpoint {
    std::string directory;
    int64_t step = 0;
    nlohmann::json state;  // all of state.json
    std::string note;      // not empty: a sentence for the user, why it is not the one that `latest` names
};

// A run directory (its latest checkpoint, see find_latest) or one checkpoint's directory. InputError naming what is
// wrong if there is none, or if it is incomplete: state.json must be undamaged and both files must have the recorded
// size.
Checkpoint open_checkpoint(const std::string& path);

// The checkpoint that RUN/latest names; if that one or `latest` is damaged, the complete one of the highest step, with
// a note. Nothing if the run has never completed a checkpoint; InputError if it had one and none is usable any more.
std::optional<Checkpoint> find_latest(const std::string& run_directory);

// Fills these tensors from one file of the checkpoint (model_file or optimizer_file) and verifies every checksum.
// InputError naming file and tensor if one is missing, unknown, of other shape or dtype, or damaged; the tensors may
// then be half filled. world: its ranks call this together, each for its own parts, and share the verification.
void load_tensors(const Checkpoint& checkpoint, const char* file, const std::vector<NamedTensor>& tensors, Context& ctx,
                  World* world = nullptr);

}  // namespace llmc
