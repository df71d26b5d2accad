// A build without MPI: one process, and a sentence instead of several that each train the same.
#include <gtest/gtest.h>

#include <cstdlib>

#include "llmc/base/errors.h"
#include "llmc/comm/comm.h"

namespace llmc::test {
namespace {

TEST(NoMpi, ManyProcessesAreRefused) {
    for (const char* launcher : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}) {
        ::setenv(launcher, "3", 1);
        try {
            World world;
            ADD_FAILURE() << launcher << " was overlooked";
        } catch (const InputError& error) {
            const std::string text = error.what();
            EXPECT_NE(text.find("3 processes"), std::string::npos) << text;
            EXPECT_NE(text.find("libopenmpi-dev"), std::string::npos) << text;
        }
        ::setenv(launcher, "1", 1);
        EXPECT_EQ(World().size, 1);
        ::unsetenv(launcher);
    }
    EXPECT_EQ(World().size, 1);
}

}  // namespace
}  // namespace llmc::test
