// Checkpoints on disk. This file knows tensors and files, not models.
//
//   RUN/step-00001000/model.safetensors      parameters, readable by any tool of that format
//                     optimizer.safetensors  what else training needs
//                     state.json             format_version, step, everything the caller gave; size of both files, a
//                                            CRC-32 of their headers and of every tensor; a CRC-32 of itself
//   RUN/latest                               the name of the directory to resume from
//
// Several processes write their parts of the two files at the same time; the files do not depend on the number of
// processes. All of them must see the run directory.
//
// If saving fails or is interrupted (kill, power cut, full disk), the checkpoint that `latest` named stays usable until
// a newer one is complete. A directory is written under a hidden name, synced and renamed; then `latest` is replaced;
// then old checkpoints are deleted.
#pragma once
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "llmc/checkpoint/directory.h"
#include "llmc/comm/comm.h"
#include "llmc/ops/ops.h"

namespace llmc {

// Saves these contiguous tensors as RUN/step-<step> and returns that directory. Replaces an older checkpoint of the
// same step. Then deletes all but `keep` checkpoints (0: none): first those of later steps, which belong to an
// abandoned continuation, then the oldest; never the new one. If the disk has no room for the new one and keep is not
// 0, they go before, and more of them, but one that is whole stays. `state` is a JSON object; the keys format_version,
// step, files and checksum are reserved. RunError if it cannot be written (disk full, no permission): the newest whole
// checkpoint is then unchanged, and saving can be tried again. world: its ranks call this together, each with its own
// parts of all tensors, and fail together.
std::string save_checkpoint(const std::string& run_directory, int64_t step, const std::vector<NamedTensor>& model,
                            const std::vector<NamedTensor>& optimizer, const nlohmann::json& state, int64_t keep,
                            Context& ctx, World& world);

struct Checkpoint {
    std::string directory;
    int64_t step = 0;
    nlohmann::json state;   // all of state.json
    std::string note;       // if it is not the one that `latest` names: a sentence for the user that says why
    bool verified = false;  // verify_checkpoint has found all checksums right
};

// A run directory (its latest checkpoint, see find_latest) or one checkpoint's directory. InputError naming what is
// wrong if there is none, or if it is incomplete: state.json must be undamaged and both files must have the recorded
// size.
Checkpoint open_checkpoint(const std::string& path);

// Bytes of a checkpoint with these tensors, but for a few kilobytes.
int64_t checkpoint_bytes(const std::vector<NamedTensor>& model, const std::vector<NamedTensor>& optimizer);

// More that a checkpoint has to be, or InputError.
using CheckpointCheck = std::function<void(const Checkpoint&)>;

// The checkpoint that RUN/latest names. If that one or `latest` is damaged: the complete one with the highest step,
// with a note. Nothing if the run has never completed a checkpoint; InputError if it has and none is usable. One that
// does not pass the check counts as damaged.
std::optional<Checkpoint> find_latest(const std::string& run_directory, const CheckpointCheck& check = {});

// InputError naming file and tensor unless both files match all their checksums. The ranks of `world` divide the work.
void verify_checkpoint(const Checkpoint& checkpoint, const World& world);

// Reads these tensors from one file of the checkpoint (model_file or optimizer_file) and verifies all checksums.
// InputError naming file and tensor if one is missing, unknown, damaged, or of another shape or dtype; the tensors may
// then be partly filled. world: its ranks call this together, each for its own parts, and divide the verification.
void load_tensors(const Checkpoint& checkpoint, const char* file, const std::vector<NamedTensor>& tensors, Context& ctx,
                  World& world);

}  // namespace llmc
