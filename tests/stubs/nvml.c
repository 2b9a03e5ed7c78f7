/* A libnvidia-ml.so.1 for tests, not part of the product: it answers what a control file says.
 *
 * NVML_STUB_CONTROL names the file, which is read again whenever it changes; lines are "KEY VALUE...".
 *
 *   gpus N                     how many there are
 *   driver TEXT
 *   error CALL CODE            that call fails: CALL is a function's name without nvml and Device ("GetPowerUsage")
 *   error CALL CODE GPU        for one GPU alone
 *   mismatch CALL              that call answers 18, unless the library is built with -DMATCHES
 *   delay CALL SECONDS         that call takes so long, once for each line written
 *   energy_mj GPU VALUE        likewise power_mw, gpu_percent, memory_percent, encoder_percent, decoder_percent,
 *                              memory_used, memory_total, celsius, limit_mw, clock_mhz, throttle, ecc_corrected,
 *                              ecc_uncorrected; a missing value is 0
 *   max_limit_mw GPU VALUE     the highest limit that may be set; without the line the driver does not tell
 *   module_mw GPU VALUE        the module's power; without the line the GPU is not part of one
 *   uuid GPU TEXT, name GPU TEXT, bus GPU TEXT
 *   session GPU ID PID CODEC WIDTH HEIGHT FPS
 *   process GPU PID TIMESTAMP SM ENCODER DECODER
 *   xid GPU NUMBER             queued each time the file changes, for an event set that is open at that time
 *   insufficient CALL N        the first N calls that fetch a list find that it has grown meanwhile
 *
 * The name of every call is appended to the file that NVML_STUB_TRACE names. -DDRIVER=TEXT is the driver's
 * version unless the control file has one. The line "mismatch" makes an old library: one that fails while the
 * kernel module is a newer one, whereas the library that is built with -DMATCHES works.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifndef DRIVER
#define DRIVER "580.1"
#endif
#ifdef MATCHES
enum { MAY_MISMATCH = 0 };
#else
enum { MAY_MISMATCH = 1 };
#endif

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT = 7, TIMED_OUT = 10 };
enum { ANOTHER_VERSION = 18, MAX = 512 };

struct line { char key[24]; char a[40]; char b[80]; char rest[160]; int done; };
struct session { unsigned id, pid, vgpu, codec, width, height, fps, latency; };
struct process { unsigned pid; unsigned long long stamp; unsigned sm, memory, encoder, decoder; };
struct utilization { unsigned gpu, memory; };
struct memory { unsigned long long total, free, used; };
struct pci {
    char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32];
};
struct field { unsigned id, scope; long long stamp, latency; int type, error; union { unsigned number; double real; } value; };
struct event { void *device; unsigned long long type, data; unsigned gpu, compute; };

static struct line lines[MAX];
static int count, opened;
static struct stat last;
static char handles[64];   /* a GPU's handle is its place in here */
static char listening[64]; /* the GPUs whose Xid events the open set takes */
static struct xid { int gpu; unsigned long long number; } queue[MAX]; /* not fetched yet */
static int queued;

static void load(void) {
    const char *path = getenv("NVML_STUB_CONTROL");
    struct stat now;
    if (!path || stat(path, &now)) return;
    if (now.st_ino == last.st_ino && now.st_mtim.tv_nsec == last.st_mtim.tv_nsec &&
        now.st_mtim.tv_sec == last.st_mtim.tv_sec && now.st_size == last.st_size) return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    last = now;
    count = 0;
    char text[320];
    while (count < MAX && fgets(text, sizeof text, file)) {
        struct line *at = &lines[count];
        memset(at, 0, sizeof *at);
        if (sscanf(text, "%23s %39s %79s %159[^\n]", at->key, at->a, at->b, at->rest) >= 2) {
            int gpu = atoi(at->a) % (int)sizeof listening;
            /* An event without a listener is dropped, as by the real library. */
            if (!strcmp(at->key, "xid") && listening[gpu] && queued < MAX)
                queue[queued++] = (struct xid){gpu, strtoull(at->b, NULL, 10)};
            count++;
        }
    }
    fclose(file);
}

static struct line *find(const char *key, const char *a) {
    for (int i = 0; i < count; i++)
        if (!strcmp(lines[i].key, key) && (!a || !strcmp(lines[i].a, a))) return &lines[i];
    return NULL;
}

/* Forget the listeners and their events that were not fetched. */
static void stop_listening(void) {
    memset(listening, 0, sizeof listening);
    queued = 0;
}

static int number_of(void *device) { return (int)((char *)device - handles); }

static unsigned long long value(const char *key, void *device) {
    char gpu[12];
    snprintf(gpu, sizeof gpu, "%d", number_of(device));
    struct line *at = find(key, gpu);
    return at ? strtoull(at->b, NULL, 10) : 0;
}

static void text(const char *key, void *device, char *to, unsigned size, const char *otherwise) {
    char gpu[12];
    snprintf(gpu, sizeof gpu, "%d", number_of(device));
    struct line *at = find(key, gpu);
    if (at) snprintf(to, size, "%s%s%s", at->b, *at->rest ? " " : "", at->rest);
    else snprintf(to, size, otherwise, number_of(device));
}

/* Every call does this first: read the file, wait, and fail if the file says so. */
static int enter(const char *call, void *device) {
    load();
    const char *trace = getenv("NVML_STUB_TRACE");
    FILE *file = trace ? fopen(trace, "a") : NULL;
    if (file) {
        fprintf(file, "%s\n", call);
        fclose(file);
    }
    for (int i = 0; i < count; i++)
        if (!strcmp(lines[i].key, "delay") && !strcmp(lines[i].a, call) && !lines[i].done) {
            lines[i].done = 1;
            double seconds = atof(lines[i].b);
            struct timespec time = {(time_t)seconds, (long)((seconds - (long)seconds) * 1e9)};
            nanosleep(&time, NULL);
        }
    for (int i = 0; i < count; i++)
        if (!strcmp(lines[i].key, "error") && !strcmp(lines[i].a, call) &&
            (!*lines[i].rest || (device && atoi(lines[i].rest) == number_of(device))))
            return atoi(lines[i].b);
    if (MAY_MISMATCH && find("mismatch", call)) return ANOTHER_VERSION;
    if (!opened && strcmp(call, "Init")) return UNINITIALIZED;
    return OK;
}

/* Return whether a list has grown since its size was asked for. */
static int grown(const char *call) {
    for (int i = 0; i < count; i++)
        if (!strcmp(lines[i].key, "insufficient") && !strcmp(lines[i].a, call) && lines[i].done < atoi(lines[i].b)) {
            lines[i].done++;
            return 1;
        }
    return 0;
}

static int gpus(void) {
    struct line *at = find("gpus", NULL);
    return at ? atoi(at->a) : 0;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    int error = enter("Init", NULL);
    if (!error) opened = 1;
    return error;
}
int nvmlShutdown(void) {
    int error = enter("Shutdown", NULL);
    opened = 0;
    stop_listening();
    return error;
}
const char *nvmlErrorString(int error) { (void)error; return "stub"; }

int nvmlSystemGetDriverVersion(char *version, unsigned size) {
    int error = enter("SystemGetDriverVersion", NULL);
    struct line *at = find("driver", NULL);
    snprintf(version, size, "%s", at ? at->a : DRIVER);
    return error;
}

int nvmlDeviceGetCount_v2(unsigned *found) {
    int error = enter("GetCount", NULL);
    *found = (unsigned)gpus();
    return error;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    if (index >= sizeof handles) return INVALID;
    *device = handles + index;
    int error = enter("GetHandleByIndex", *device);
    return error ? error : (int)index < gpus() ? OK : INVALID;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device) {
    int error = enter("GetHandleByPciBusId", NULL);
    if (error) return error;
    for (int i = 0; i < gpus(); i++) {
        char known[40];
        text("bus", handles + i, known, sizeof known, "00000000:%02X:00.0");
        const char *end = known + 4; /* sysfs has four digits of the domain's eight */
        if (!strcasecmp(known, bus) || !strcasecmp(end, bus)) {
            *device = handles + i;
            return enter("GetHandleByPciBusId", *device);
        }
    }
    return NOT_FOUND;
}
int nvmlDeviceGetIndex(void *device, unsigned *index) {
    *index = (unsigned)number_of(device);
    return enter("GetIndex", device);
}
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned size) {
    int error = enter("GetUUID", device);
    text("uuid", device, uuid, size, "GPU-stub-%d");
    return error;
}
int nvmlDeviceGetName(void *device, char *name, unsigned size) {
    int error = enter("GetName", device);
    text("name", device, name, size, "Stub %d");
    return error;
}
int nvmlDeviceGetPciInfo_v3(void *device, struct pci *pci) {
    int error = enter("GetPciInfo", device);
    memset(pci, 0, sizeof *pci);
    text("bus", device, pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0");
    return error;
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *mj) {
    int error = enter("GetTotalEnergyConsumption", device);
    *mj = value("energy_mj", device);
    return error;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *mw) {
    int error = enter("GetPowerUsage", device);
    *mw = (unsigned)value("power_mw", device);
    return error;
}
int nvmlDeviceGetUtilizationRates(void *device, struct utilization *rates) {
    int error = enter("GetUtilizationRates", device);
    rates->gpu = (unsigned)value("gpu_percent", device);
    rates->memory = (unsigned)value("memory_percent", device);
    return error;
}
int nvmlDeviceGetEncoderUtilization(void *device, unsigned *percent, unsigned *period) {
    int error = enter("GetEncoderUtilization", device);
    *percent = (unsigned)value("encoder_percent", device);
    *period = 167000;
    return error;
}
int nvmlDeviceGetDecoderUtilization(void *device, unsigned *percent, unsigned *period) {
    int error = enter("GetDecoderUtilization", device);
    *percent = (unsigned)value("decoder_percent", device);
    *period = 167000;
    return error;
}
int nvmlDeviceGetMemoryInfo(void *device, struct memory *memory) {
    int error = enter("GetMemoryInfo", device);
    memory->total = value("memory_total", device);
    memory->used = value("memory_used", device);
    memory->free = memory->total - memory->used;
    return error;
}
static int temperature(void *device, int *celsius) {
    int error = enter("GetTemperature", device);
    *celsius = (int)value("celsius", device);
    return error;
}
int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius) {
    (void)sensor;
    return temperature(device, (int *)celsius);
}
int nvmlDeviceGetTemperatureV(void *device, void *asked) { /* version, sensor, temperature */
    return temperature(device, (int *)asked + 2);
}
int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *mw) {
    int error = enter("GetEnforcedPowerLimit", device);
    *mw = (unsigned)value("limit_mw", device);
    return error;
}
int nvmlDeviceGetPowerManagementLimitConstraints(void *device, unsigned *least, unsigned *most) {
    int error = enter("GetPowerManagementLimitConstraints", device);
    *least = 1000;
    *most = (unsigned)value("max_limit_mw", device);
    return error ? error : *most ? OK : NOT_SUPPORTED;
}
int nvmlDeviceGetFieldValues(void *device, int size, struct field *fields) {
    int error = enter("GetFieldValues", device);
    for (int i = 0; i < size; i++) { /* 185 is the mean power; scope 1 is the module */
        fields[i].value.number = (unsigned)value(fields[i].scope == 1 ? "module_mw" : "power_mw", device);
        fields[i].error = fields[i].id == 185 && fields[i].value.number ? OK : NOT_SUPPORTED;
    }
    return error;
}
int nvmlDeviceGetClockInfo(void *device, unsigned clock, unsigned *mhz) {
    int error = enter("GetClockInfo", device);
    *mhz = (unsigned)value("clock_mhz", device) + clock;
    return error;
}
static int throttle(void *device, unsigned long long *reasons) {
    int error = enter("GetCurrentClocksThrottleReasons", device);
    *reasons = value("throttle", device);
    return error;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons) {
    return throttle(device, reasons);
}
int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *reasons) {
    return throttle(device, reasons);
}
int nvmlDeviceGetTotalEccErrors(void *device, unsigned kind, unsigned which, unsigned long long *found) {
    (void)which;
    int error = enter("GetTotalEccErrors", device);
    *found = value(kind ? "ecc_uncorrected" : "ecc_corrected", device);
    return error;
}

int nvmlDeviceGetEncoderSessions(void *device, unsigned *size, struct session *sessions) {
    int error = enter("GetEncoderSessions", device);
    if (error) return error;
    unsigned found = 0, room = *size;
    for (int i = 0; i < count; i++) {
        if (strcmp(lines[i].key, "session") || atoi(lines[i].a) != number_of(device)) continue;
        if (sessions && found < room) {
            struct session *at = &sessions[found];
            memset(at, 0, sizeof *at);
            at->id = (unsigned)atoi(lines[i].b);
            sscanf(lines[i].rest, "%u %u %u %u %u", &at->pid, &at->codec, &at->width, &at->height, &at->fps);
        }
        found++;
    }
    *size = found;
    return sessions && (room < found || grown("GetEncoderSessions")) ? INSUFFICIENT : OK;
}
int nvmlDeviceGetProcessUtilization(void *device, struct process *samples, unsigned *size,
                                    unsigned long long since) {
    int error = enter("GetProcessUtilization", device);
    if (error) return error;
    unsigned found = 0, room = *size;
    for (int i = 0; i < count; i++) {
        if (strcmp(lines[i].key, "process") || atoi(lines[i].a) != number_of(device)) continue;
        struct process one = {0};
        one.pid = (unsigned)atoi(lines[i].b);
        sscanf(lines[i].rest, "%llu %u %u %u", &one.stamp, &one.sm, &one.encoder, &one.decoder);
        if (one.stamp <= since) continue;
        if (samples && found < room) samples[found] = one;
        found++;
    }
    *size = found;
    if (!found) return NOT_FOUND;
    return !samples || room < found || grown("GetProcessUtilization") ? INSUFFICIENT : OK;
}

int nvmlEventSetCreate(void **set) { *set = lines; return enter("EventSetCreate", NULL); }
int nvmlEventSetFree(void *set) {
    (void)set;
    int error = enter("EventSetFree", NULL);
    stop_listening();
    return error;
}
int nvmlDeviceRegisterEvents(void *device, unsigned long long types, void *set) {
    (void)types, (void)set;
    int error = enter("RegisterEvents", device);
    if (!error) listening[number_of(device)] = 1;
    return error;
}
int nvmlEventSetWait_v2(void *set, struct event *event, unsigned milliseconds) {
    (void)set, (void)milliseconds;
    int error = enter("EventSetWait", NULL);
    if (error) return error;
    if (!queued) return TIMED_OUT;
    memset(event, 0, sizeof *event);
    event->device = handles + queue[0].gpu;
    event->type = 8;
    event->data = queue[0].number;
    memmove(queue, queue + 1, (size_t)--queued * sizeof *queue);
    return OK;
}
