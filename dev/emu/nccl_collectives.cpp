// Collectives of the emulated NCCL, by letters: no trees and rings, every rank speaks to every other. Sums are in the
// order of the ranks, so all ranks get the same bits.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "dev/emu/nccl_peers.h"

namespace emu {
namespace {

template <class T>
T combined(T a, T b, ncclRedOp_t op) {
    switch (op) {
        case ncclProd: return a * b;
        case ncclMax: return std::max(a, b);
        case ncclMin: return std::min(a, b);
        default: return a + b;
    }
}

// `result` may be one of the parts.
template <class T>
void reduce(const std::vector<const char*>& parts, char* result, size_t bytes, ncclRedOp_t op) {
    for (size_t i = 0; i < bytes / sizeof(T); i++) {
        auto element = [&](size_t r) { return reinterpret_cast<const T*>(parts[r])[i]; };
        T total = element(0);
        for (size_t r = 1; r < parts.size(); r++) total = combined(total, element(r), op);
        if (op == ncclAvg) total /= T(parts.size());
        reinterpret_cast<T*>(result)[i] = total;
    }
}

using Reduction = void (*)(const std::vector<const char*>& parts, char* result, size_t bytes, ncclRedOp_t op);

Reduction reduction_of(ncclDataType_t type) {
    switch (type) {
        case ncclFloat32: return reduce<float>;
        case ncclFloat64: return reduce<double>;
        case ncclInt32: return reduce<int32_t>;
        case ncclInt64: return reduce<int64_t>;
        case ncclUint32: return reduce<uint32_t>;
        case ncclUint64: return reduce<uint64_t>;
        default: return nullptr;
    }
}

}  // namespace

bool can_reduce(ncclDataType_t type) { return reduction_of(type) != nullptr; }

void carry_out(Collective kind, const void* send, void* receive, size_t bytes, ncclDataType_t type, int root,
               ncclRedOp_t op, Peers& peers) {
    const int me = peers.rank;
    const bool reduces = kind != Collective::all_gather && kind != Collective::broadcast;
    auto speaks = [&](int r) { return kind != Collective::broadcast || r == root; };
    auto hears = [&](int r) { return kind != Collective::reduce || r == root; };

    std::vector<char> copies(reduces && hears(me) ? bytes * size_t(peers.ranks) : 0);  // of what the others give
    char* mine = static_cast<char*>(const_cast<void*>(send));
    char* result = static_cast<char*>(receive);
    auto part_for = [&](int r) { return mine + (kind == Collective::reduce_scatter ? size_t(r) * bytes : 0); };
    auto place_of = [&](int r) {
        if (reduces) return copies.data() + size_t(r) * bytes;
        return result + (kind == Collective::all_gather ? size_t(r) * bytes : 0);
    };
    std::vector<Letter> out, in;
    for (int r = 0; r < peers.ranks; r++) {
        if (r == me) continue;
        if (speaks(me) && hears(r)) out.push_back({part_for(r), bytes, r});
        if (speaks(r) && hears(me)) in.push_back({place_of(r), bytes, r});
    }
    if (!peers.exchange(out, in) || bytes == 0 || !hears(me)) return;

    if (reduces) {
        std::vector<const char*> parts;
        for (int r = 0; r < peers.ranks; r++) parts.push_back(r == me ? part_for(me) : place_of(r));
        reduction_of(type)(parts, result, bytes, op);
    } else if (speaks(me) && place_of(me) != mine) {
        memcpy(place_of(me), mine, bytes);
    }
}

}  // namespace emu
