/* Streams, events and launches. Nothing runs when it is submitted: it waits in its stream's queue until a call must see
 * its result. So what the host reads too early is not there yet, and what it overwrites too early arrives overwritten.
 *
 *      stream 1:  [kernel][copy][record event 7]                 An event stands for a place in a queue. Waiting for it
 *      stream 2:  [wait for event 7][kernel]                     runs its stream up to that place.
 *
 * When all streams have to run, CUDA_ON_CPU_ORDER decides which goes first: a missing wait between two streams shows
 * in some order. The default stream (0) waits for all others, and they for it, as CUDA's legacy default stream does,
 * unless they were made with cudaStreamNonBlocking.
 */
#include "tests/cuda_on_cpu/internal.h"

#include <string.h>
#include <time.h>

#include <deque>
#include <map>

namespace emulator {

enum : size_t { ARGUMENT_LIMIT = 4096 };

struct Task {
    void (*run)(void *argument);
    void *argument;
};

struct Stream {
    std::deque<Task> queue;
    uint64_t submitted = 0, finished = 0; /* tasks so far; the queue holds those between */
    bool blocking = true;
};

struct Event {
    Stream *stream = nullptr; /* NULL: never recorded */
    uint64_t place = 0;       /* has happened when the stream has finished as many */
    double seconds = 0;       /* when it happened */
};

static Stream default_stream;
/* Made by cudaStreamCreate, oldest first. Both lists outlive the leak check at the end of the process. */
static std::vector<Stream *> &streams = *new std::vector<Stream *>;
static std::vector<Stream *> &destroyed_streams = *new std::vector<Stream *>;

/* ---- running ----------------------------------------------------------------------------------------------------- */

static void run_first(Stream *stream) {
    DeviceWork work;
    Task task = stream->queue.front();
    stream->queue.pop_front();
    task.run(task.argument);
    stream->finished++;
}

static void run_until(Stream *stream, uint64_t place) {
    DeviceWork work;
    while (stream->finished < place) run_first(stream);
}

static void run_streams(const std::vector<Stream *> &some) {
    DeviceWork work;
    if (options.order == ORDER_FORWARD)
        for (Stream *stream : some) run_until(stream, stream->submitted);
    if (options.order == ORDER_REVERSE)
        for (size_t i = some.size(); i-- > 0;) run_until(some[i], some[i]->submitted);
    std::vector<Stream *> busy;
    do {
        busy.clear();
        for (Stream *stream : some)
            if (!stream->queue.empty()) busy.push_back(stream);
        if (!busy.empty()) run_first(busy[random_below(busy.size())]);
    } while (!busy.empty());
}

void run_all_streams() {
    std::vector<Stream *> all = streams;
    all.push_back(&default_stream);
    run_streams(all);
}

static std::vector<Stream *> blocking_streams() {
    std::vector<Stream *> blocking;
    for (Stream *stream : streams)
        if (stream->blocking) blocking.push_back(stream);
    return blocking;
}

/* ---- submitting -------------------------------------------------------------------------------------------------- */

static Stream *find(cudaStream_t handle) {
    if (!handle || handle == cudaStreamLegacy) return &default_stream;
    for (Stream *stream : streams)
        if (handle == reinterpret_cast<cudaStream_t>(stream)) return stream;
    fail("stream %p does not exist", static_cast<void *>(handle));
}

void submit(cudaStream_t handle, void (*run)(void *argument), void *argument) {
    if (running_grid) fail("a kernel calls the host's API");
    Stream *stream = find(handle);
    if (stream == &default_stream)
        run_streams(blocking_streams());
    else if (stream->blocking)
        run_until(&default_stream, default_stream.submitted);
    stream->queue.push_back({run, argument});
    stream->submitted++;
}

/* ---- launches ---------------------------------------------------------------------------------------------------- */

struct PendingLaunch {
    Grid grid;
    size_t argument_bytes;
    alignas(64) char arguments[ARGUMENT_LIMIT];
};

static std::map<const void *, size_t> granted_shared_bytes; /* by kernel */

/* Kernels read their arguments from here: the program's own memory, which the race checker passes over. */
alignas(64) static char arguments_of_running_grid[ARGUMENT_LIMIT];

static void run_launch(void *argument) {
    PendingLaunch *pending = static_cast<PendingLaunch *>(argument);
    memcpy(arguments_of_running_grid, pending->arguments, pending->argument_bytes);
    pending->grid.arguments = arguments_of_running_grid;
    cuda_on_cpu.launches++;
    if (!options.launches_only) run_grid(pending->grid);
    delete pending;
}

static bool is_configuration_valid(dim3 grid, dim3 block) {
    uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
    return threads >= 1 && threads <= 1024 && block.x <= 1024 && block.y <= 1024 && block.z <= 64 && grid.x >= 1 &&
           grid.y >= 1 && grid.z >= 1 && grid.x <= 0x7fffffff && grid.y <= 65535 && grid.z <= 65535;
}

cudaError_t launch(const Launch &launch) {
    const cudaLaunchConfig_t &config = *launch.config;
    if (!is_configuration_valid(config.gridDim, config.blockDim)) return report_error(cudaErrorInvalidConfiguration);
    if (config.numAttrs) fail("launch attributes are not emulated");
    size_t granted = SHARED_WITHOUT_ASKING;
    auto asked = granted_shared_bytes.find(launch.kernel);
    if (asked != granted_shared_bytes.end() && asked->second > granted) granted = asked->second;
    if (config.dynamicSmemBytes > granted) return report_error(cudaErrorInvalidValue);
    if (launch.argument_bytes > ARGUMENT_LIMIT)
        fail("%zu bytes of kernel arguments; the most is %zu", launch.argument_bytes,
             static_cast<size_t>(ARGUMENT_LIMIT));
    record_launch(launch.kernel, config.blockDim, config.dynamicSmemBytes);
    PendingLaunch *pending = new PendingLaunch;
    pending->grid = {config.gridDim, config.blockDim, config.dynamicSmemBytes, launch.kernel, launch.call, nullptr};
    pending->argument_bytes = launch.argument_bytes;
    memcpy(pending->arguments, launch.arguments, launch.argument_bytes);
    submit(config.stream, run_launch, pending);
    return cudaSuccess;
}

/* ---- events ------------------------------------------------------------------------------------------------------ */

static double seconds_now() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

static void run_record(void *argument) {
    static_cast<Event *>(argument)->seconds = seconds_now();
}

static void wait_for(const Event &event) {
    if (event.stream) run_until(event.stream, event.place);
}

/* The event's place as it is now: a later record does not move a wait that is in a queue already. */
static void run_wait(void *argument) {
    wait_for(*static_cast<Event *>(argument));
    delete static_cast<Event *>(argument);
}

static bool has_happened(const Event &event) {
    return !event.stream || event.stream->finished >= event.place;
}

static Event *event_of(cudaEvent_t handle) {
    return reinterpret_cast<Event *>(handle);
}

} // namespace emulator

using namespace emulator;

extern "C" {

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *argument) {
    submit(stream, function, argument);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *handle, unsigned flags) {
    Stream *stream = new Stream;
    stream->blocking = !(flags & cudaStreamNonBlocking);
    streams.push_back(stream);
    *handle = reinterpret_cast<cudaStream_t>(stream);
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *handle) {
    return cudaStreamCreateWithFlags(handle, cudaStreamDefault);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *handle, unsigned flags, int) {
    return cudaStreamCreateWithFlags(handle, flags);
}

/* Events that were recorded on the stream still refer to it. */
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
    Stream *stream = find(handle);
    run_until(stream, stream->submitted);
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i] == stream) streams.erase(streams.begin() + static_cast<ptrdiff_t>(i--));
    destroyed_streams.push_back(stream);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    Stream *stream = find(handle);
    cuda_on_cpu.waits++;
    run_until(stream, stream->submitted);
    return cudaSuccess;
}

/* "Not ready" once, so that code which does not ask again shows; whoever asks again gets on. */
cudaError_t cudaStreamQuery(cudaStream_t handle) {
    Stream *stream = find(handle);
    if (stream->queue.empty()) return cudaSuccess;
    run_until(stream, stream->submitted);
    return cudaErrorNotReady;
}

cudaError_t cudaDeviceSynchronize() {
    cuda_on_cpu.waits++;
    run_all_streams();
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || value > SHARED_LIMIT) return report_error(cudaErrorInvalidValue);
    granted_shared_bytes[kernel] = static_cast<size_t>(value);
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *handle, unsigned) {
    *handle = reinterpret_cast<cudaEvent_t>(new Event);
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *handle) {
    return cudaEventCreateWithFlags(handle, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t handle) {
    wait_for(*event_of(handle));
    delete event_of(handle);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream) {
    Event *event = event_of(handle);
    submit(stream, run_record, event);
    event->stream = find(stream);
    event->place = event->stream->submitted;
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t handle, unsigned) {
    submit(stream, run_wait, new Event(*event_of(handle)));
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    if (!has_happened(*event_of(handle))) cuda_on_cpu.waits++;
    wait_for(*event_of(handle));
    return cudaSuccess;
}

/* As cudaStreamQuery. */
cudaError_t cudaEventQuery(cudaEvent_t handle) {
    if (has_happened(*event_of(handle))) return cudaSuccess;
    wait_for(*event_of(handle));
    return cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    const Event &first = *event_of(start), &last = *event_of(end);
    if (!first.stream || !last.stream) return report_error(cudaErrorInvalidResourceHandle);
    if (!has_happened(first) || !has_happened(last)) return report_error(cudaErrorNotReady);
    *milliseconds = static_cast<float>(1e3 * (last.seconds - first.seconds));
    return cudaSuccess;
}

} // extern "C"
