// A rank that throws, dies, hangs or goes another way ends the whole job soon, with a message that names it, and no
// process stays behind.
#include <signal.h>

#include <chrono>
#include <thread>

#include "dev/test/ranks.h"
#include "llmc/ops/ops.h"

namespace llmc::test {
namespace {

using namespace std::chrono_literals;

// ------------------------------------------------------------------------------- what the ranks do, under mpirun only
// They leave their process ids where the test looks for them.
const char* const ids_variable = "RANKS_TEST_IDS";

struct Scene {
    World world;
    Context ctx{{.device = choose_device(world)}};
    Comm comm{world, ctx};

    Scene() {
        write_file_atomic(str(std::getenv(ids_variable), "/", ::getpid()), "");
        world.set_timeout(2);
        world.barrier();
    }
    // What a training run does until something happens.
    void train() {
        Tensor t(device_alloc(4000, ctx), DType::f32, {1000}, "t");
        fill(t, 0, ctx);
        for (;;) {
            comm.after_compute();
            comm.all_reduce(t);
            comm.before_compute();
            synchronize(ctx);
        }
    }
    void leave_alone_with_signals() { ::signal(SIGTERM, SIG_IGN), ::signal(SIGINT, SIG_IGN); }
};

TEST(DISABLED_Scene, Throws) {
    Scene scene;
    try {
        if (scene.world.rank == 1) input_error("the shard is gone");
        scene.train();
    } catch (const InputError& error) {
        scene.world.abort(error.what(), 2);
    }
}

TEST(DISABLED_Scene, Unwinds) {
    try {
        Scene scene;
        if (scene.world.rank == 1) run_error("nobody catches this while the World lives");
        scene.train();
    } catch (const RunError&) {
        std::this_thread::sleep_for(1h);
    }
}

TEST(DISABLED_Scene, AllThrow) {
    Scene scene;
    scene.world.abort("no such flag", 2);
}

TEST(DISABLED_Scene, Killed) {
    Scene scene;
    if (scene.world.rank == 1) ::raise(SIGKILL);
    scene.train();
}

TEST(DISABLED_Scene, Hangs) {
    Scene scene;
    scene.leave_alone_with_signals();
    if (scene.world.rank == 1) std::this_thread::sleep_for(1h);
    scene.train();
}

TEST(DISABLED_Scene, Stopped) {
    Scene scene;
    if (scene.world.rank == 1) ::raise(SIGSTOP);
    scene.train();
}

TEST(DISABLED_Scene, GoesAnotherWay) {
    Scene scene;
    if (scene.world.rank == 1) scene.world.barrier();
    scene.train();
}

TEST(DISABLED_Scene, EndsEarly) {
    Scene scene;
    if (scene.world.rank != 1) scene.train();
}

TEST(DISABLED_Scene, ChoosesDevice) {
    World world;
    try {
        std::printf("device %d\n", choose_device(world));
    } catch (const InputError& error) {
        world.abort(error.what(), 2);
    }
}

TEST(DISABLED_Scene, Trains) {
    Scene scene;
    scene.leave_alone_with_signals();
    scene.train();
}

TEST(DISABLED_Scene, SlowButWithinTheTimeout) {
    Scene scene;
    for (int i = 0; i < 8; i++) {
        std::this_thread::sleep_for(300ms);
        scene.world.barrier();
    }
}

// ----------------------------------------------------------------------------------------------- what must come of it
class Failure : public testing::Test {
protected:
    TempDir ids;
    int code = -1;
    double seconds = 0;
    std::string said;

    void SetUp() override {
        if (path_of("mpirun").empty()) GTEST_SKIP() << "no mpirun: install openmpi-bin";
        ::setenv(ids_variable, ids.path.c_str(), 1);
    }
    std::vector<pid_t> processes() const {
        std::vector<pid_t> found;
        for (const auto& file : std::filesystem::directory_iterator(ids.path)) {
            const std::string name = file.path().filename();
            if (name.find_first_not_of("0123456789") == std::string::npos) found.push_back(std::stoi(name));
        }
        return found;
    }
    void expect_nobody_left() {
        const std::vector<pid_t> started = processes();
        EXPECT_EQ(started.size(), 3u);
        for (pid_t id : started) {
            for (int i = 0; i < 100 && ::kill(id, 0) == 0; i++) std::this_thread::sleep_for(100ms);
            if (::kill(id, 0) == 0) {
                ADD_FAILURE() << "process " << id << " is still there";
                ::kill(id, SIGKILL);
            }
        }
    }
    // Runs a scene on three ranks. `most` seconds include starting MPI.
    void play(const std::string& scene, double most) {
        const auto start = std::chrono::steady_clock::now();
        RankedRun run(3, "DISABLED_Scene." + scene);
        code = run.wait();
        seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        said = run.said();
        EXPECT_LT(seconds, most) << said;
        expect_nobody_left();
    }
    size_t count(const std::string& part) const {
        size_t n = 0;
        for (size_t at = 0; (at = said.find(part, at)) != std::string::npos; at++) n++;
        return n;
    }
};

TEST_F(Failure, OneThrows) {
    play("Throws", 30);
    EXPECT_EQ(code, 2);
    EXPECT_EQ(count("): the shard is gone"), 1u) << said;
    EXPECT_EQ(count("rank 1 ("), 1u) << said;
}

TEST_F(Failure, OneUnwinds) {
    play("Unwinds", 30);
    EXPECT_EQ(code, 1);
    EXPECT_EQ(count("): ended by an exception"), 1u) << said;
}

TEST_F(Failure, AllThrow) {
    play("AllThrow", 30);
    EXPECT_EQ(code, 2);
    EXPECT_EQ(count("no such flag"), 1u) << said;
}

TEST_F(Failure, OneIsKilled) {
    play("Killed", 30);
    EXPECT_NE(code, 0);
    EXPECT_NE(said.find("signal 9"), std::string::npos) << said;
}

// The one in no collective is found out.
TEST_F(Failure, OneHangs) {
    for (const char* scene : {"Hangs", "Stopped"}) {
        play(scene, 40);
        EXPECT_NE(code, 0);
        EXPECT_GE(count("all_reduce of 4000 bytes takes more than 2 seconds"), 1u) << said;
        EXPECT_GE(count("rank 1 is in no collective"), 1u) << said;
        std::filesystem::remove_all(ids.path);
        std::filesystem::create_directory(ids.path);
    }
}

TEST_F(Failure, OneGoesAnotherWay) {
    play("GoesAnotherWay", 40);
    EXPECT_NE(code, 0);
    EXPECT_GE(count("rank 1 is in barrier") + count("): barrier takes more than"), 1u) << said;
}

TEST_F(Failure, OneEndsEarly) {
    play("EndsEarly", 40);
    EXPECT_NE(code, 0);
    EXPECT_GE(count("rank 1 is in waiting at the end") + count("): waiting at the end takes more than"), 1u) << said;
}

TEST_F(Failure, TheLauncherIsKilled) {
    RankedRun run(3, "DISABLED_Scene.Trains");
    for (int i = 0; i < 300 && processes().size() < 3; i++) std::this_thread::sleep_for(100ms);
    ::kill(run.process.id, SIGKILL);
    EXPECT_EQ(run.wait(), killed_by(SIGKILL)) << run.said();
    expect_nobody_left();
}

TEST_F(Failure, NoFalseAlarm) {
    play("SlowButWithinTheTimeout", 60);
    EXPECT_EQ(code, 0) << said;
}

// The GPU of a rank. The emulator has as many as we like.
class Devices : public Failure {
protected:
    void SetUp() override {
        Failure::SetUp();
        Context ctx({.counting = true});
        if (backend_description(ctx).find("emulated") == std::string::npos) GTEST_SKIP() << "for the emulated GPU";
    }
    void choose(int ranks, const char* devices) {
        ::setenv("EMU_DEVICES", devices, 1);
        RankedRun run(ranks, "DISABLED_Scene.ChoosesDevice");
        code = run.wait();
        said = run.said();
        ::unsetenv("EMU_DEVICES");
    }
};

TEST_F(Devices, OneEach) {
    choose(3, "3");
    EXPECT_EQ(code, 0) << said;
    for (const char* line : {"device 0\n", "device 1\n", "device 2\n"}) EXPECT_EQ(count(line), 1u) << said;
}

// A collective that the GPU never ends, while the program waits for something else.
TEST_F(Devices, HangsInAStream) {
    ::setenv("EMU_LAZY", "1", 1);
    play("Hangs", 40);
    ::unsetenv("EMU_LAZY");
    EXPECT_NE(code, 0);
    EXPECT_GE(count("all_reduce of 4000 bytes between GPUs takes more than 2 seconds"), 1u) << said;
}

TEST_F(Devices, TooFewOrTheSame) {
    choose(3, "2");
    EXPECT_EQ(code, 2) << said;
    EXPECT_EQ(count("no GPU for process 2 of 3"), 1u) << said;
    choose(2, "1");
    EXPECT_EQ(code, 2) << said;
    EXPECT_EQ(count("ranks 0 and 1 have the same GPU"), 1u) << said;
    choose(2, "0");
    EXPECT_EQ(code, 2) << said;
    EXPECT_EQ(count("no GPU for process 0 of 2"), 1u) << said;
}

}  // namespace
}  // namespace llmc::test
