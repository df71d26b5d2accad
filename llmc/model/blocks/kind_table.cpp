// Alone in its file: a test links a table with one row more in its place.
#include "llmc/model/blocks/kind_table.h"

namespace llmc {

std::span<const BlockKind> block_kinds() { return block_kind_table; }

}  // namespace llmc
