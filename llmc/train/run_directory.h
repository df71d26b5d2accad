// The run directory: who may write there, the checkpoint that a run goes on from, and how a run begins.
#pragma once
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "llmc/checkpoint/checkpoint.h"
#include "llmc/comm/comm.h"
#include "llmc/data/shards.h"

namespace llmc {

// The right to write to a run directory, of one process (rank 0 of a run): an flock on its file `lock`, which the
// kernel takes back however the process ends. The file stays; it names the process for the message to others.
class RunLock {
public:
    static constexpr const char* file = "lock";

    RunLock() = default;
    ~RunLock();
    RunLock(RunLock&& other) noexcept;
    RunLock& operator=(RunLock&&) = delete;

    // Takes the lock, unless it has it already. False if there is no such directory yet. InputError if another process
    // keeps it for some seconds (one that was killed may need them to end). On a filesystem without flock: a warning,
    // and it counts as taken.
    bool take(const std::string& run_dir);

    // Takes the lock of a directory that may have to be made, with its parents; InputError if it cannot be. True if it
    // was not taken before: then another run may have been here since the caller last looked.
    bool make(const std::string& run_dir);

private:
    int fd = -1;
};

// Called by all ranks: rank 0 takes the lock. InputError, on all ranks, if another process has it.
void take_on_all(RunLock& lock, const std::string& run_dir, World& world);

// The checkpoint to resume from, the same on all ranks: as find_latest, of those that are whole by all their checksums
// and hold a state that training can go on from.
std::optional<Checkpoint> find_checkpoint(const std::string& run_dir, World& world);

// InputError: this run would be a second one in its directory.
[[noreturn]] void refuse_second_run(const std::string& run_dir);

// On rank 0: makes the directory with run.json and the tokenizer; cuts the log back to the checkpoint that was found.
void prepare_run_directory(const std::string& run_dir, RunLock& lock, const nlohmann::json& identity,
                           const Dataset& data, const std::optional<Checkpoint>& found);

// A sentence for the user if a disk with `room` bytes for checkpoints will not hold what a run saves: checkpoints of
// `bytes`, `saves` of them, of which `keep` stay (0: all). "" if it will, or if room is negative: not known.
std::string space_warning(const std::string& run_dir, int64_t room, int64_t bytes, int64_t saves, int64_t keep);

// Rank 0 has made the run directory: all others must see the same one, or no checkpoint could ever be saved.
void check_shared(const std::string& run_dir, const nlohmann::json& identity, World& world);

}  // namespace llmc
