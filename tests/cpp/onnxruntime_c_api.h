// What intaglio.hpp uses of ONNX Runtime's C interface, for machines without the headers of a
// release.  The library keeps the order of its table of functions from release to release, so that
// a program that is compiled with this runs on the library that is in ONNX Runtime's wheel.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct OrtEnv;
struct OrtStatus;
struct OrtMemoryInfo;
struct OrtSession;
struct OrtValue;
struct OrtRunOptions;
struct OrtSessionOptions;
struct OrtTensorTypeAndShapeInfo;

enum OrtLoggingLevel { ORT_LOGGING_LEVEL_ERROR = 3 };
enum OrtAllocatorType { OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };
enum ONNXTensorElementDataType { ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED = 0, LARGEST = 32 };

#define ORT_API_VERSION 12

typedef void (*Unused)();

struct OrtApi {
  Unused before_messages[2];
  const char* (*GetErrorMessage)(const OrtStatus*);
  OrtStatus* (*CreateEnv)(OrtLoggingLevel, const char*, OrtEnv**);
  Unused before_sessions[4];
  OrtStatus* (*CreateSessionFromArray)(const OrtEnv*, const void*, size_t, const OrtSessionOptions*,
                                       OrtSession**);
  OrtStatus* (*Run)(OrtSession*, const OrtRunOptions*, const char* const*, const OrtValue* const*,
                    size_t, const char* const*, size_t, OrtValue**);
  OrtStatus* (*CreateSessionOptions)(OrtSessionOptions**);
  Unused before_threads[13];
  OrtStatus* (*SetIntraOpNumThreads)(OrtSessionOptions*, int);
  Unused before_tensors[24];
  OrtStatus* (*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo*, void*, size_t, const int64_t*,
                                               size_t, ONNXTensorElementDataType, OrtValue**);
  Unused before_data[1];
  OrtStatus* (*GetTensorMutableData)(OrtValue*, void**);
  Unused before_types[8];
  OrtStatus* (*GetTensorElementType)(const OrtTensorTypeAndShapeInfo*, ONNXTensorElementDataType*);
  OrtStatus* (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo*, size_t*);
  OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t);
  Unused before_shapes[2];
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue*, OrtTensorTypeAndShapeInfo**);
  Unused before_memory[3];
  OrtStatus* (*CreateCpuMemoryInfo)(OrtAllocatorType, OrtMemType, OrtMemoryInfo**);
  Unused before_releases[22];
  void (*ReleaseEnv)(OrtEnv*);
  void (*ReleaseStatus)(OrtStatus*);
  void (*ReleaseMemoryInfo)(OrtMemoryInfo*);
  void (*ReleaseSession)(OrtSession*);
  void (*ReleaseValue)(OrtValue*);
  Unused before_infos[2];
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo*);
  void (*ReleaseSessionOptions)(OrtSessionOptions*);
  Unused before_entries[29];
  OrtStatus* (*AddSessionConfigEntry)(OrtSessionOptions*, const char*, const char*);
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t);
  const char* (*GetVersionString)();
};

const OrtApiBase* OrtGetApiBase();
}
