// Device memory of the emulator.
#pragma once

namespace emu {

// While one exists, code may touch device memory. Matters with EMU_GUARD=1 only.
class DeviceAccess {
public:
    DeviceAccess();
    ~DeviceAccess();
    DeviceAccess(const DeviceAccess&) = delete;
    DeviceAccess& operator=(const DeviceAccess&) = delete;
};

}  // namespace emu
