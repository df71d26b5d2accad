#include "llmc/checkpoint/directory.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "llmc/base/errors.h"

namespace llmc {

namespace fs = std::filesystem;

std::string name_of_step(int64_t step) {
    char name[40];
    std::snprintf(name, sizeof name, "step-%08lld", static_cast<long long>(step));
    return name;
}

int64_t step_of_name(std::string name) {
    if (name.ends_with(replaced_suffix)) name.resize(name.size() - std::string(replaced_suffix).size());
    const std::string digits = name.starts_with("step-") ? name.substr(5) : "";
    if (digits.empty() || digits.size() > 18 || digits.find_first_not_of("0123456789") != std::string::npos) return -1;
    const int64_t step = std::stoll(digits);
    return name == name_of_step(step) ? step : -1;
}

std::vector<Found> checkpoints_in(const std::string& run) {
    std::vector<Found> found;
    std::error_code error;
    for (fs::directory_iterator it(run, error), end; !error && it != end; it.increment(error)) {
        std::string name = it->path().filename().string();
        if (int64_t step = step_of_name(name); step >= 0) found.push_back({name, step});
    }
    std::sort(found.begin(), found.end(), [](const Found& a, const Found& b) {
        return a.step != b.step ? a.step > b.step : a.name.size() < b.name.size();  // the replaced one comes second
    });
    return found;
}

void remove_quietly(const std::string& path) {
    std::error_code ignored;
    fs::remove_all(path, ignored);
}

void remove_unfinished(const std::string& run) {
    std::error_code error;
    std::vector<std::string> leftovers;
    for (fs::directory_iterator it(run, error), end; !error && it != end; it.increment(error)) {
        std::string name = it->path().filename().string();
        if ((name.starts_with(".step-") && name.ends_with(".tmp")) || name.starts_with(str(latest_file, ".tmp.")))
            leftovers.push_back(it->path().string());
    }
    for (const std::string& path : leftovers) remove_quietly(path);
}

namespace {

// Under a hidden name first: half deleted it must not look like a checkpoint.
void delete_checkpoint(const std::string& run, const std::string& name) {
    const std::string doomed = str(run, "/.", name, ".tmp");
    std::error_code error;
    fs::rename(run + "/" + name, doomed, error);
    if (!error) remove_quietly(doomed);
}

// Checkpoints in the order of their worth for a run at this step: its newest first, and at the end those of later
// steps, which belong to an abandoned continuation.
std::vector<Found> by_worth(const std::string& run, int64_t step) {
    std::vector<Found> found = checkpoints_in(run);
    std::stable_partition(found.begin(), found.end(), [&](const Found& c) { return c.step <= step; });
    return found;
}

}  // namespace

void delete_old(const std::string& run, const std::string& written, int64_t keep) {
    int64_t kept = 0;
    for (const auto& [name, unused] : by_worth(run, step_of_name(written)))
        if (name.ends_with(replaced_suffix) || (name != written && keep > 0 && kept >= keep))
            delete_checkpoint(run, name);
        else
            kept++;
}

void make_room(const std::string& run, int64_t step, int64_t bytes,
               const std::function<bool(const std::string&)>& is_whole) {
    constexpr int64_t blocks = 64 << 10;  // that files and directories are rounded up to
    auto lacks = [&] {
        std::error_code error;
        const fs::space_info space = fs::space(run, error);
        return !error && space.available < uintmax_t(bytes + blocks);
    };
    if (!lacks()) return;
    std::vector<Found> found = by_worth(run, step);
    const auto whole =
        std::find_if(found.begin(), found.end(), [&](const Found& c) { return is_whole(run + "/" + c.name); });
    if (whole == found.end()) return;
    found.erase(whole);
    for (; !found.empty() && lacks(); found.pop_back()) {
        std::fprintf(stderr, "warning: the disk of %s is full: %s is deleted to make room for the one of step %lld\n",
                     run.c_str(), found.back().name.c_str(), static_cast<long long>(step));
        delete_checkpoint(run, found.back().name);
    }
}

int64_t room_for_checkpoints(const std::string& run) {
    std::error_code error;
    const fs::space_info space = fs::space(run, error);
    if (error) return -1;
    uintmax_t bytes = space.available;
    for (const Found& found : checkpoints_in(run))
        for (const char* file : {model_file, optimizer_file})
            if (const uintmax_t size = fs::file_size(run + "/" + found.name + "/" + file, error); !error) bytes += size;
    return int64_t(std::min(bytes, uintmax_t(INT64_MAX)));
}

}  // namespace llmc
