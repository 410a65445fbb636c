// What docs/cpp.md uses of ONNX Runtime's C++ interface, declared to check the types of the page
// where the headers of a release are not installed.  Nothing here is defined.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING };
enum OrtAllocatorType { OrtArenaAllocator };
enum OrtMemType { OrtMemTypeDefault };

namespace Ort {

struct Env {
  Env(OrtLoggingLevel level, const char* id);
};

struct SessionOptions {
  SessionOptions& AddConfigEntry(const char* key, const char* value);
};

struct RunOptions {
  explicit RunOptions(std::nullptr_t);
};

struct MemoryInfo {
  static MemoryInfo CreateCpu(OrtAllocatorType type, OrtMemType kind);
};

struct ConstTensorTypeAndShapeInfo {
  std::vector<int64_t> GetShape() const;
};

struct TypeInfo {
  ConstTensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const;
};

struct Value {
  Value(Value&&) = default;
  Value& operator=(Value&&) = default;
  template <typename T>
  static Value CreateTensor(const MemoryInfo& memory, T* data, size_t count, const int64_t* shape,
                            size_t rank);
  template <typename T>
  const T* GetTensorData() const;
  ConstTensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const;
};

struct IoBinding;

struct Session {
  Session(const Env& env, const void* model, size_t size, const SessionOptions& options);
  size_t GetInputCount() const;
  std::vector<std::string> GetInputNames() const;
  TypeInfo GetInputTypeInfo(size_t index) const;
  void Run(const RunOptions& options, const IoBinding& binding);
};

struct IoBinding {
  explicit IoBinding(Session& session);
  void BindInput(const char* name, const Value& value);
  void BindOutput(const char* name, const Value& value);
  void BindOutput(const char* name, const MemoryInfo& memory);
  std::vector<Value> GetOutputValues() const;
};

}  // namespace Ort
