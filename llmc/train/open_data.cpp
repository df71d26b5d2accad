#include "llmc/train/open_data.h"

#include "llmc/base/errors.h"

namespace llmc {

Dataset open_dataset_on_all(const std::string& path, World& world) {
    Dataset data;
    std::string problem;
    try {
        data = open_dataset(path, world.rank == 0);
    } catch (const InputError& error) {
        problem = error.what();
    }
    const std::vector<std::string> problems = world.all_gather(problem), hosts = world.all_gather(world.host);
    if (!problems[0].empty()) input_error(problems[0]);
    for (size_t rank = 1; rank < problems.size(); rank++)
        if (!problems[rank].empty())
            input_error("on ", hosts[rank], ", though not on ", hosts[0], ": ", problems[rank]);
    return data;
}

}  // namespace llmc
