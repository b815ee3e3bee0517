/* A stand-in for NVIDIA's libnvidia-ml.so.1, whose answers the tests script.
 *
 * The file named by NVML_SCRIPT has lines of a name and a number and is read at every call. The name of a function
 * makes it return that error, or hang for as long as the number is -1. Other names are values: gpus (1), lost (the
 * number of one that is lost, from 1), mig (instances), xid (an event that is told once), ecc (uncorrected errors),
 * pid (a process on the GPU), reasons (of clock events).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, TIMEOUT = 10, GPU_IS_LOST = 15 };
enum { HANG = -1 };

typedef void *device;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory;
typedef struct { unsigned gpu, memory; } utilization;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process;
typedef struct { device device; unsigned long long type, data; unsigned gpu_instance, compute_instance; } event;

static const long FIRST_INSTANCE = 100;

static long scripted(const char *name, long otherwise) {
    const char *path = getenv("NVML_SCRIPT");
    FILE *file = path == NULL ? NULL : fopen(path, "r");
    char word[80];
    long number;
    if (file == NULL) return otherwise;
    while (fscanf(file, "%79s %ld", word, &number) == 2)
        if (strcmp(word, name) == 0) otherwise = number;
    fclose(file);
    return otherwise;
}

static int outcome(const char *function) {
    while (scripted(function, SUCCESS) == HANG) usleep(10000);
    return (int)scripted(function, SUCCESS);
}

#define RETURN_WHEN_SCRIPTED do { int code = outcome(__func__); if (code != SUCCESS) return code; } while (0)
#define GETTER(function, type, value) \
    int function(device gpu, type *out) { (void)gpu; RETURN_WHEN_SCRIPTED; *out = (value); return SUCCESS; }

GETTER(nvmlDeviceGetPowerUsage, unsigned, 250000)
GETTER(nvmlDeviceGetEnforcedPowerLimit, unsigned, 400000)
GETTER(nvmlDeviceGetTotalEnergyConsumption, unsigned long long, 123456)
GETTER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, (unsigned long long)scripted("reasons", 0))
GETTER(nvmlDeviceGetCurrPcieLinkGeneration, unsigned, 5)
GETTER(nvmlDeviceGetCurrPcieLinkWidth, unsigned, 16)
GETTER(nvmlDeviceGetPcieReplayCounter, unsigned, 2)
GETTER(nvmlDeviceGetMaxMigDeviceCount, unsigned, 7)

int nvmlInitWithFlags(unsigned flags) { (void)flags; return outcome(__func__); }
int nvmlShutdown(void) { return outcome(__func__); }
const char *nvmlErrorString(int code) { (void)code; return "scripted"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    RETURN_WHEN_SCRIPTED;
    *count = (unsigned)scripted("gpus", 1);
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device *gpu) {
    RETURN_WHEN_SCRIPTED;
    if (scripted("lost", 0) == index + 1) return GPU_IS_LOST;
    *gpu = (device)(long)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetName(device gpu, char *name, unsigned length) {
    RETURN_WHEN_SCRIPTED;
    snprintf(name, length, "Stand-in %ld", (long)gpu);
    return SUCCESS;
}

int nvmlDeviceGetUUID(device gpu, char *uuid, unsigned length) {
    RETURN_WHEN_SCRIPTED;
    snprintf(uuid, length, "GPU-%ld", (long)gpu);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(device gpu, memory *out) {
    int is_instance = (long)gpu >= FIRST_INSTANCE;
    RETURN_WHEN_SCRIPTED;
    out->total = is_instance ? 10000 : 80000;
    out->reserved = 500;
    out->used = is_instance ? 1000 : 60000;
    out->free = out->total - out->used - out->reserved;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(device gpu, utilization *out) {
    (void)gpu;
    RETURN_WHEN_SCRIPTED;
    if (scripted("mig", 0) > 0) return NOT_SUPPORTED;
    out->gpu = 87;
    out->memory = 40;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(device gpu, unsigned sensor, unsigned *out) {
    (void)gpu, (void)sensor;
    RETURN_WHEN_SCRIPTED;
    *out = 61;
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(device gpu, unsigned kind, unsigned *out) {
    (void)gpu;
    RETURN_WHEN_SCRIPTED;
    *out = 1000 + kind;
    return SUCCESS;
}

int nvmlDeviceGetTotalEccErrors(device gpu, unsigned kind, unsigned counter, unsigned long long *out) {
    (void)gpu, (void)counter;
    RETURN_WHEN_SCRIPTED;
    *out = kind == 1 ? (unsigned long long)scripted("ecc", 0) : 4;
    return SUCCESS;
}

int nvmlDeviceGetPcieThroughput(device gpu, unsigned way, unsigned *out) {
    (void)gpu;
    RETURN_WHEN_SCRIPTED;
    *out = way == 0 ? 10 : 20;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(device gpu, unsigned *count, process *out) {
    long pid = scripted("pid", 0);
    (void)gpu;
    RETURN_WHEN_SCRIPTED;
    if (pid == 0) {
        *count = 0;
        return SUCCESS;
    }
    if (*count == 0) {
        *count = 1;
        return INSUFFICIENT_SIZE;
    }
    *count = 1;
    out->pid = (unsigned)pid;
    out->used = 7000;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(device gpu, unsigned *current, unsigned *pending) {
    (void)gpu;
    RETURN_WHEN_SCRIPTED;
    *current = *pending = scripted("mig", 0) > 0;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(device gpu, unsigned index, device *instance) {
    (void)gpu;
    RETURN_WHEN_SCRIPTED;
    if (index >= scripted("mig", 0)) return NOT_FOUND;
    *instance = (device)(FIRST_INSTANCE + index);
    return SUCCESS;
}

int nvmlEventSetCreate(void **set) {
    RETURN_WHEN_SCRIPTED;
    *set = (void *)1;
    return SUCCESS;
}

int nvmlEventSetFree(void *set) { (void)set; return outcome(__func__); }

int nvmlDeviceRegisterEvents(device gpu, unsigned long long types, void *set) {
    (void)gpu, (void)types, (void)set;
    return outcome(__func__);
}

int nvmlEventSetWait_v2(void *set, event *out, unsigned milliseconds) {
    static long told = 0;
    long xid = scripted("xid", 0);
    (void)set;
    RETURN_WHEN_SCRIPTED;
    if (xid == told) {
        usleep(1000 * (milliseconds < 50 ? milliseconds : 50));
        return TIMEOUT;
    }
    told = xid;
    memset(out, 0, sizeof *out);
    out->device = (device)1L;
    out->type = 8;
    out->data = (unsigned long long)xid;
    return SUCCESS;
}
