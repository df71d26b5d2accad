#include "llmc/checkpoint/checkpoint.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>

#include "llmc/base/files.h"
#include "llmc/base/json_text.h"
#include "llmc/base/safetensors.h"
#include "llmc/base/version.h"

namespace llmc {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

// ------------------------------------------------------------------------------------------------------ saving
// Runs f on all ranks. If it fails on any, all of them get a RunError with the reason of the first.
template <class F>
void together(World& world, const F& f) {
    std::string problem;
    try {
        f();
    } catch (const std::exception& error) {
        problem = error.what();
    }
    const std::vector<std::string> problems = world.all_gather(problem);
    for (size_t rank = 0; rank < problems.size(); rank++)
        if (!problems[rank].empty())
            run_error(problems.size() > 1 ? str("rank ", rank, ": ") : "", problems[rank]);
}

SafetensorsLayout layout_of(const std::vector<NamedTensor>& tensors, int64_t step) {
    std::vector<SafetensorsEntry> entries;
    for (const NamedTensor& t : tensors) entries.push_back({t.name, t.tensor.dtype, t.shape()});
    return lay_out_safetensors(entries, {{"step", std::to_string(step)}});
}

// The part of one tensor that a rank has written: bytes [first, first + count) of it.
struct WrittenPart {
    int64_t tensor, first, count;
    uint32_t crc32;
};

// This rank's parts of one file, synced.
std::vector<WrittenPart> write_parts(const std::string& path, const SafetensorsLayout& layout,
                                     const std::vector<NamedTensor>& tensors, bool with_header, Context& ctx) {
    constexpr int64_t piece = 4 << 20;  // elements
    PartFile file(path);
    if (with_header) file.write_at(0, layout.header.data(), layout.header.size());
    std::vector<char> buffer;
    std::vector<WrittenPart> written;
    for (size_t i = 0; i < tensors.size(); i++) {
        const Tensor part = tensors[i].tensor.view({tensors[i].tensor.numel()});
        const int64_t element = size_of(part.dtype), first = tensors[i].first * element;
        if (part.numel() == 0) continue;
        uint32_t crc = crc32_of(nullptr, 0);
        for (int64_t done = 0; done < part.numel(); done += piece) {
            const Tensor now = part.slice(done, std::min(done + piece, part.numel()));
            buffer.resize(size_t(now.bytes()));
            download(buffer.data(), now, ctx);
            crc = crc32_of(buffer.data(), buffer.size(), crc);
            file.write_at(layout.tensors[i].offset + first + done * element, buffer.data(), buffer.size());
        }
        written.push_back({int64_t(i), first, part.bytes(), crc});
    }
    file.commit();
    return written;
}

// The checksum of every tensor from those of its parts, and proof that somebody has written all of it.
json join_parts(const SafetensorsLayout& layout, std::vector<WrittenPart> parts) {
    std::sort(parts.begin(), parts.end(), [](const WrittenPart& a, const WrittenPart& b) {
        return a.tensor != b.tensor ? a.tensor < b.tensor : a.first < b.first;
    });
    json listed = json::object();
    auto part = parts.begin();
    for (size_t i = 0; i < layout.tensors.size(); i++) {
        int64_t done = 0;
        uint32_t crc = crc32_of(nullptr, 0);
        for (; part != parts.end() && part->tensor == int64_t(i) && part->first == done; ++part)
            crc = crc32_append(crc, part->crc32, part->count), done += part->count;
        if (done != layout.tensors[i].bytes())
            run_error("of tensor ", layout.tensors[i].name, ", byte ", done, " was not written by exactly one rank");
        listed[layout.tensors[i].name] = hex32(crc);
    }
    if (part != parts.end()) run_error("a part of tensor number ", part->tensor, " was written twice");
    const std::string& header = layout.header;
    return {{"bytes", layout.bytes}, {"header", hex32(crc32_of(header.data(), header.size()))}, {"tensors", listed}};
}

// Writes one file by all ranks, and returns what state.json says about it: {"bytes": n, "header": crc32,
// "tensors": {name: crc32}}.
json write_tensors(const std::string& path, const std::vector<NamedTensor>& tensors, int64_t step, Context& ctx,
                   World& world) {
    const bool first = world.rank == 0;
    const SafetensorsLayout layout = layout_of(tensors, step);
    together(world, [&] {
        if (first) PartFile::create(path, layout.bytes);
    });
    std::vector<WrittenPart> parts;
    together(world, [&] { parts = write_parts(path, layout, tensors, first, ctx); });
    const std::string mine(reinterpret_cast<const char*>(parts.data()), parts.size() * sizeof parts[0]);
    parts.clear();
    for (const std::string& bytes : world.all_gather(mine)) {
        const size_t old = parts.size();
        parts.resize(old + bytes.size() / sizeof parts[0]);
        std::memcpy(parts.data() + old, bytes.data(), bytes.size());
    }
    return join_parts(layout, parts);
}

// Broken UTF-8 (a path in the configuration) becomes U+FFFD instead of an exception.
std::string text_of(const json& state, int indent) {
    return state.dump(indent, ' ', false, json::error_handler_t::replace);
}

// CRC-32 of state.json without its checksum; the dump of a JSON value is the same before writing and after reading.
std::string checksum_of(json state) {
    state.erase("checksum");
    const std::string text = text_of(state, -1);
    return hex32(crc32_of(text.data(), text.size()));
}

// By all checksums, because it may be the only one that is left.
bool is_whole(const std::string& directory) {
    try {
        verify_checkpoint(open_checkpoint(directory), World::alone());
        return true;
    } catch (const InputError&) {
        return false;
    }
}

}  // namespace

std::string save_checkpoint(const std::string& run_directory, int64_t step, const std::vector<NamedTensor>& model,
                            const std::vector<NamedTensor>& optimizer, const json& given, int64_t keep, Context& ctx,
                            World& world) {
    if (!given.is_object()) run_error("save_checkpoint: state must be a JSON object");
    for (const char* key : {"format_version", "step", "files", "checksum"})
        if (given.contains(key)) run_error("save_checkpoint: the key ", key, " of state is reserved");
    const std::string name = name_of_step(step), final = run_directory + "/" + name;
    if (step < 0 || step_of_name(name) != step)
        run_error("save_checkpoint: step ", step, " is negative or has more than 18 digits");
    const std::string temporary = str(run_directory, "/.", name, ".tmp"), replaced = final + replaced_suffix;
    const bool first = world.rank == 0;
    json state = given;
    try {
        together(world, [&] {
            if (!first) return;
            make_directories(run_directory);
            remove_unfinished(run_directory);
            make_directories(temporary);
            const int64_t bytes = checkpoint_bytes(model, optimizer) + int64_t(text_of(state, 1).size());
            if (keep > 0) make_room(run_directory, step, bytes, is_whole);
        });
        state["format_version"] = checkpoint_format;
        state["step"] = step;
        for (const auto& [file, tensors] : {std::pair(model_file, &model), std::pair(optimizer_file, &optimizer)})
            state["files"][file] = write_tensors(str(temporary, "/", file), *tensors, step, ctx, world);
        state["checksum"] = checksum_of(state);
        together(world, [&] {
            if (!first) return;
            write_file_atomic(temporary + "/" + state_file, text_of(state, 1) + "\n");
            // Between these two renames a kill leaves the older version of this step under the name that find_latest
            // also knows; there is no portable way to exchange two directories.
            if (path_exists(final)) {
                remove_quietly(replaced);
                rename_durably(final, replaced);
            }
            rename_durably(temporary, final);
            write_file_atomic(str(run_directory, "/", latest_file), name + "\n");
        });
    } catch (const std::exception& e) {
        if (first) {
            remove_quietly(temporary);  // gives the disk its room back
            std::error_code ignored;
            if (!path_exists(final) && path_exists(replaced)) fs::rename(replaced, final, ignored);
        }
        run_error("could not save the checkpoint of step ", step, ": ", e.what());
    }
    if (first) delete_old(run_directory, name, keep);
    return final;
}

int64_t checkpoint_bytes(const std::vector<NamedTensor>& model, const std::vector<NamedTensor>& optimizer) {
    return layout_of(model, 0).bytes + layout_of(optimizer, 0).bytes;
}

// ------------------------------------------------------------------------------------------------------ opening
namespace {

json read_state(const std::string& path) {
    json state = parse_json(read_file(path), path);
    if (!state.is_object() || !state.contains("format_version") || !state["format_version"].is_number_integer())
        input_error(path, " is damaged: it is not a JSON object with a format_version");
    if (state["format_version"] != checkpoint_format)
        input_error(path, " has format ", state["format_version"].dump(), ", this program reads ", checkpoint_format,
                    ": use the version of the program that wrote it");
    if (!state.contains("checksum") || state["checksum"] != checksum_of(state))
        input_error(path, " is damaged: its content does not match its checksum");
    if (!state.contains("step") || !state.contains("files") || !state["files"].is_object())
        input_error(path, " does not describe a checkpoint: step or files are missing");
    if (!state["step"].is_number_unsigned() || state["step"].get<uint64_t>() > uint64_t(largest_step))
        input_error(path, ": step is ", state["step"].dump(), ", not a whole number from 0 to ", largest_step);
    for (const char* file : {model_file, optimizer_file}) {
        const json described = state["files"].value(file, json());
        if (!described.is_object() || !described.contains("bytes") || !described["bytes"].is_number_unsigned() ||
            !described.contains("tensors") || !described["tensors"].is_object())
            input_error(path, " does not describe a checkpoint: it does not say what is in ", file);
    }
    return state;
}

// One checkpoint's directory, complete. InputError otherwise.
Checkpoint open_directory(const std::string& directory) {
    Checkpoint checkpoint;
    checkpoint.directory = directory;
    if (!path_exists(directory + "/" + state_file))
        input_error(directory, " is not a complete checkpoint: it has no ", state_file);
    checkpoint.state = read_state(directory + "/" + state_file);
    checkpoint.step = checkpoint.state["step"].get<int64_t>();
    for (const char* file : {model_file, optimizer_file}) {
        const std::string path = directory + "/" + file;
        const json& recorded = checkpoint.state["files"][file]["bytes"];
        std::error_code error;
        const auto bytes = fs::file_size(path, error);
        if (error) input_error("checkpoint file ", path, " cannot be read: ", error.message());
        if (recorded != bytes)
            input_error("checkpoint file ", path, " has ", bytes, " bytes instead of ", recorded.dump(),
                        ": it is truncated or damaged");
    }
    return checkpoint;
}

// As open_directory, but nothing and the reason where that or the check throws.
std::optional<Checkpoint> try_open(const std::string& directory, const CheckpointCheck& check, std::string& why) {
    try {
        Checkpoint checkpoint = open_directory(directory);
        if (check) check(checkpoint);
        return checkpoint;
    } catch (const InputError& e) {
        why = e.what();
        return std::nullopt;
    }
}

}  // namespace

std::optional<Checkpoint> find_latest(const std::string& run_directory, const CheckpointCheck& check) {
    const std::string latest = str(run_directory, "/", latest_file);
    std::string why = str(latest, " is missing"), name;
    bool saved = path_exists(latest);  // some checkpoint has been completed
    if (saved) {
        name = read_file(latest);
        while (!name.empty() && (name.back() == '\n' || name.back() == '\r')) name.pop_back();
        if (step_of_name(name) < 0) why = str(latest, " is damaged: it names no checkpoint");
        else if (auto checkpoint = try_open(run_directory + "/" + name, check, why)) return checkpoint;
    }
    for (const auto& [other, unused] : checkpoints_in(run_directory)) {
        if (other == name) continue;
        std::string problem;
        if (auto checkpoint = try_open(run_directory + "/" + other, check, problem)) {
            checkpoint->note = str(why, "; using ", other, " instead");
            return checkpoint;
        }
        if (!saved && path_exists(str(run_directory, "/", other, "/", state_file))) saved = true, why = problem;
    }
    if (saved) input_error("no checkpoint in ", run_directory, " is usable: ", why);
    return std::nullopt;
}

Checkpoint open_checkpoint(const std::string& path) {
    if (!path_exists(path)) input_error("there is no checkpoint ", path);
    std::error_code error;
    if (!fs::is_directory(path, error))
        input_error(path, " is not a checkpoint: give a run's directory or one of its step-... directories");
    std::string trimmed = path;
    while (trimmed.size() > 1 && trimmed.back() == '/') trimmed.pop_back();
    if (path_exists(trimmed + "/" + state_file) || step_of_name(fs::path(trimmed).filename().string()) >= 0)
        return open_directory(trimmed);
    auto checkpoint = find_latest(trimmed);
    if (!checkpoint) input_error("there is no complete checkpoint in ", trimmed);
    return *std::move(checkpoint);
}

// ------------------------------------------------------------------------------------------------------ loading
namespace {

// The sentence for a tensor that is there but does not fit.
void check_fits(const std::string& path, const SafetensorsEntry& saved, const NamedTensor& wanted) {
    if (saved.dtype != wanted.tensor.dtype)
        input_error(path, ": tensor ", saved.name, " is ", name_of(saved.dtype), ", this run needs ",
                    name_of(wanted.tensor.dtype), ": run with the --precision the checkpoint was made with");
    if (!(saved.shape == wanted.shape()))
        input_error(path, ": tensor ", saved.name, " has shape ", saved.shape.text(), ", this model needs ",
                    wanted.shape().text(), ": the checkpoint belongs to a model of another size");
}

// Checkpoints of before this was recorded have no checksum of the header.
void verify_header(const SafetensorsFile& saved, const json& described) {
    const std::string_view header = saved.header();
    if (described.contains("header") && described["header"] != hex32(crc32_of(header.data(), header.size())))
        input_error(saved.path(), " is damaged: its header does not match the checksum in ", state_file,
                    ": use another checkpoint");
}

void verify_tensor(const SafetensorsFile& saved, const SafetensorsEntry& entry, const json& described) {
    const json& checksums = described.at("tensors");
    if (!checksums.contains(entry.name) ||
        checksums[entry.name] != hex32(crc32_of(saved.bytes(entry), size_t(entry.bytes()))))
        input_error(saved.path(), ": tensor ", entry.name, " is damaged: its bytes do not match the checksum in ",
                    state_file, ": use another checkpoint");
}

}  // namespace

void load_tensors(const Checkpoint& checkpoint, const char* file, const std::vector<NamedTensor>& tensors, Context& ctx,
                  World& world) {
    const std::string path = checkpoint.directory + "/" + file;
    const json& described = checkpoint.state.at("files").at(file);
    const SafetensorsFile saved(path);
    verify_header(saved, described);
    std::map<std::string, const NamedTensor*> wanted;
    for (const NamedTensor& tensor : tensors) wanted[tensor.name] = &tensor;
    for (const auto& [name, tensor] : wanted) {
        const SafetensorsEntry* entry = saved.find(name);
        if (!entry)
            input_error(path, " has no tensor ", name, ", which this model needs: it was saved from another model");
        check_fits(path, *entry, *tensor);
    }
    for (const SafetensorsEntry& entry : saved.tensors())
        if (!wanted.contains(entry.name))
            input_error(path, " has a tensor ", entry.name,
                        " that this model does not have: it was saved from another model");
    int64_t number = 0;
    for (const SafetensorsEntry& entry : saved.tensors()) {  // in the order on disk
        if (number++ % world.size == world.rank && !checkpoint.verified) verify_tensor(saved, entry, described);
        const NamedTensor& here = *wanted[entry.name];
        if (here.tensor.numel()) upload(here.tensor, saved.bytes(entry) + here.first * size_of(entry.dtype), ctx);
    }
}

void verify_checkpoint(const Checkpoint& checkpoint, const World& world) {
    for (const char* file : {model_file, optimizer_file}) {
        const json& described = checkpoint.state.at("files").at(file);
        const SafetensorsFile saved(checkpoint.directory + "/" + file);
        verify_header(saved, described);
        for (size_t i = size_t(world.rank); i < saved.tensors().size(); i += size_t(world.size))
            verify_tensor(saved, saved.tensors()[i], described);
        if (saved.tensors().size() != described.at("tensors").size())
            input_error(saved.path(), " has ", saved.tensors().size(), " tensors, ", state_file, " lists ",
                        described.at("tensors").size(), ": it is damaged: use another checkpoint");
    }
}

}  // namespace llmc
