// The data of a run, opened by all its processes.
#pragma once
#include "llmc/comm/comm.h"
#include "llmc/data/shards.h"

namespace llmc {

// open_dataset on every rank; only rank 0 reads the tokens of bare shards to check them. InputError on all ranks, with
// the same sentence, if any of them cannot use the data.
Dataset open_dataset_on_all(const std::string& path, World& world);

}  // namespace llmc
