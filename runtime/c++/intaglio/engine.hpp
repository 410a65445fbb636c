// One graph in ONNX Runtime, through its C interface: tensors in, tensors out.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "error.hpp"
#include "manifest.hpp"
#include "tensor.hpp"

namespace intaglio::detail {

inline const OrtApi& ort() {
  static const OrtApi* const api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (api == nullptr)
    throw Error(std::string("this library of ONNX Runtime, ") + OrtGetApiBase()->GetVersionString() +
                ", is older than the headers that the program was compiled with");
  return *api;
}

// Throws what ONNX Runtime says.
inline void check(OrtStatus* status) {
  if (status == nullptr) return;
  const std::string said = ort().GetErrorMessage(status);
  ort().ReleaseStatus(status);
  throw Error("ONNX Runtime: " + said);
}


struct Release {
  void operator()(OrtEnv* it) const { ort().ReleaseEnv(it); }
  void operator()(OrtSessionOptions* it) const { ort().ReleaseSessionOptions(it); }
  void operator()(OrtSession* it) const { ort().ReleaseSession(it); }
  void operator()(OrtMemoryInfo* it) const { ort().ReleaseMemoryInfo(it); }
  void operator()(OrtTensorTypeAndShapeInfo* it) const { ort().ReleaseTensorTypeAndShapeInfo(it); }
  void operator()(OrtValue* it) const { ort().ReleaseValue(it); }
};

template <typename T>
using Owned = std::unique_ptr<T, Release>;

inline OrtEnv* environment() {
  static const Owned<OrtEnv> env = [] {
    OrtEnv* made = nullptr;
    check(ort().CreateEnv(ORT_LOGGING_LEVEL_ERROR, "intaglio", &made));
    return Owned<OrtEnv>(made);
  }();
  return env.get();
}

class Engine {
 public:
  // Opens the graph; its weights are mapped from the folder of the bundle.
  Engine(const std::filesystem::path& bundle, const Graph& graph, int threads) {
    OrtSessionOptions* made = nullptr;
    check(ort().CreateSessionOptions(&made));
    const Owned<OrtSessionOptions> options(made);
    const auto configure = [&](const char* key, const std::string& value) {
      check(ort().AddSessionConfigEntry(options.get(), key, value.c_str()));
    };
    configure("session.model_external_initializers_file_folder_path", bundle.string());
    configure("session.intra_op.allow_spinning", "0");
    if (threads > 0) check(ort().SetIntraOpNumThreads(options.get(), threads));
    const std::string content = read_file(bundle / graph.file);
    OrtSession* session = nullptr;
    check(ort().CreateSessionFromArray(environment(), content.data(), content.size(),
                                       options.get(), &session));
    session_.reset(session);
    OrtMemoryInfo* memory = nullptr;
    check(ort().CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    memory_.reset(memory);
  }

  // Lets ONNX Runtime look into `tensor`, which has to outlive what is returned.
  Owned<OrtValue> view(Tensor& tensor) const {
    OrtValue* made = nullptr;
    static std::byte none;  // of a tensor without entries
    void* const data = tensor.bytes.empty() ? &none : tensor.bytes.data();
    check(ort().CreateTensorWithDataAsOrtValue(
        memory_.get(), data, tensor.bytes.size(), tensor.shape.data(), tensor.shape.size(),
        static_cast<ONNXTensorElementDataType>(tensor.dtype->onnx), &made));
    return Owned<OrtValue>(made);
  }

  // Runs it on `inputs` by name.  Outputs with a tensor are written there; the others are returned,
  // in their order.
  std::vector<Tensor> run(const std::vector<std::pair<std::string, Tensor*>>& inputs,
                          const std::vector<std::pair<std::string, Tensor*>>& outputs) {
    std::vector<const char*> given, wanted;
    std::vector<Owned<OrtValue>> views;
    std::vector<const OrtValue*> values;
    std::vector<OrtValue*> results;
    for (const auto& [name, tensor] : inputs) {
      given.push_back(name.c_str());
      views.push_back(view(*tensor));
      values.push_back(views.back().get());
    }
    for (const auto& [name, tensor] : outputs) {
      wanted.push_back(name.c_str());
      if (tensor != nullptr) views.push_back(view(*tensor));
      results.push_back(tensor == nullptr ? nullptr : views.back().get());
    }
    OrtStatus* const status =
        ort().Run(session_.get(), nullptr, given.data(), values.data(), given.size(), wanted.data(),
                  wanted.size(), results.data());
    std::vector<Owned<OrtValue>> made;
    for (size_t i = 0; i < outputs.size(); ++i)
      if (outputs[i].second == nullptr && results[i] != nullptr) made.emplace_back(results[i]);
    check(status);
    std::vector<Tensor> found;
    for (const auto& value : made) found.push_back(copy(*value));
    return found;
  }

 private:
  Owned<OrtSession> session_;
  Owned<OrtMemoryInfo> memory_;

  static Tensor copy(OrtValue& value) {
    OrtTensorTypeAndShapeInfo* made = nullptr;
    check(ort().GetTensorTypeAndShape(&value, &made));
    const Owned<OrtTensorTypeAndShapeInfo> info(made);
    ONNXTensorElementDataType kind = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    size_t rank = 0;
    check(ort().GetTensorElementType(info.get(), &kind));
    check(ort().GetDimensionsCount(info.get(), &rank));
    Shape shape(rank);
    check(ort().GetDimensions(info.get(), shape.data(), rank));
    Tensor tensor(onnx_dtype(static_cast<int>(kind)), shape);
    void* data = nullptr;
    check(ort().GetTensorMutableData(&value, &data));
    if (!tensor.bytes.empty()) std::memcpy(tensor.bytes.data(), data, tensor.bytes.size());
    return tensor;
  }
};

}  // namespace intaglio::detail
