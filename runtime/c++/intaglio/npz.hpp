// Reads and writes numpy's .npz files: archives of .npy files that are stored, not compressed.
//
// Formats: PKWARE's APPNOTE 6.3.10 of zip archives, sections 4.3 and 4.5.3, and numpy's NEP 1 of
// arrays.  What a file claims is checked against what it has before memory is taken for it.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <string>
#include <system_error>

#include "error.hpp"
#include "tensor.hpp"

namespace intaglio {

// What an archive holds: arrays of numbers, and texts, which numpy has as arrays without axes.
struct Npz {
  Tensors arrays;
  std::map<std::string, std::string> texts;
};

namespace detail {

inline uint32_t crc32(const std::string& bytes) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> made{};
    for (uint32_t i = 0; i < 256; ++i) {
      made[i] = i;
      for (int bit = 0; bit < 8; ++bit) made[i] = (made[i] >> 1) ^ ((made[i] & 1) ? 0xEDB88320 : 0);
    }
    return made;
  }();
  uint32_t sum = 0xFFFFFFFF;
  for (const char byte : bytes)
    sum = (sum >> 8) ^ table[(sum ^ static_cast<unsigned char>(byte)) & 0xFF];
  return ~sum;
}

inline void put(std::string& to, uint64_t value, int size) {
  for (int i = 0; i < size; ++i) to += static_cast<char>((value >> (8 * i)) & 0xFF);
}

inline uint64_t get(const std::string& from, size_t at, int size) {
  if (at > from.size() || from.size() - at < static_cast<size_t>(size))
    throw Error("the archive is cut short");
  uint64_t value = 0;
  for (int i = size - 1; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(from[at + i]);
  return value;
}

// A .npy file of `bytes`.
inline std::string npy(const std::string& code, const Shape& shape, const std::string& bytes) {
  std::string sizes;
  for (const int64_t size : shape) sizes += std::to_string(size) + ", ";
  std::string header = "{'descr': '" + code + "', 'fortran_order': False, 'shape': (" + sizes + "), }";
  header += std::string(63 - (10 + header.size()) % 64, ' ') + "\n";
  std::string file = "\x93NUMPY\x01";
  file += '\0';
  put(file, header.size(), 2);
  return file + header + bytes;
}

// What stands between `start` and `end` in the header of a .npy file.
inline std::string between(const std::string& header, const std::string& start, char end) {
  const size_t from = header.find(start);
  const size_t to = from == std::string::npos ? from : header.find(end, from + start.size());
  if (to == std::string::npos) throw Error("its header says nothing of " + start);
  return header.substr(from + start.size(), to - from - start.size());
}

inline void read_npy(const std::string& name, const std::string& file, Npz& into) {
  const size_t start = file.compare(0, 7, "\x93NUMPY\x01") == 0 ? 10 : 12;
  const size_t length = get(file, 8, start == 10 ? 2 : 4);
  if (file.compare(0, 6, "\x93NUMPY") != 0 || file.size() - start < length)
    throw Error("it is no array");
  const std::string header = file.substr(start, length);
  const std::string code = between(header, "'descr': '", '\'');
  if (between(header, "'fortran_order': ", ',') != "False") throw Error("its axes are turned");
  Shape shape;
  const std::string sizes = between(header, "'shape': (", ')');
  for (size_t at = 0; (at = sizes.find_first_of("0123456789", at)) != std::string::npos;) {
    const size_t end = std::min(sizes.find_first_not_of("0123456789", at), sizes.size());
    shape.push_back(std::strtoll(sizes.substr(at, end - at).c_str(), nullptr, 10));
    at = end;
  }
  const size_t data = start + length, left = file.size() - data;
  if (code.compare(0, 2, "<U") == 0) {  // four bytes a character
    std::string text;
    for (size_t at = 0; at < left; at += 4) {
      const uint64_t character = get(file, data + at, 4);
      if (character > 126) throw Error("its text is not plain");
      if (character) text += static_cast<char>(character);
    }
    into.texts[name] = text;
    return;
  }
  const DType& dtype = numpy_dtype(code);
  if (count(shape) != left / dtype.size || left % dtype.size)
    throw Error("it has not the shape " + words(shape) + " that it says");
  Tensor tensor(dtype, shape);
  std::memcpy(tensor.bytes.data(), file.data() + data, left);
  into.arrays[name] = std::move(tensor);
}

}  // namespace detail

// The arrays and texts in the file `path`; throws Error where it is no such file, or a damaged one.
inline Npz read_npz(const std::filesystem::path& path) {
  using detail::get;
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw Error(path.string() + " cannot be read");
  const std::string file{std::istreambuf_iterator<char>(stream), {}};
  std::string member;
  try {
    const size_t end = file.rfind(std::string("PK\x05\x06", 4));
    if (end == std::string::npos) throw Error("it is no archive");
    const uint64_t entries = get(file, end + 10, 2);
    size_t at = get(file, end + 16, 4);
    Npz found;
    for (uint64_t entry = 0; entry < entries; ++entry) {
      if (get(file, at, 4) != 0x02014b50) throw Error("its directory is damaged");
      const uint64_t method = get(file, at + 10, 2), sum = get(file, at + 16, 4);
      const uint64_t size = get(file, at + 24, 4), start = get(file, at + 42, 4);
      const size_t name = get(file, at + 28, 2), extra = get(file, at + 30, 2);
      member = file.substr(std::min(at + 46, file.size()), name);
      if (method || size == 0xFFFFFFFF || start == 0xFFFFFFFF)
        throw Error("it is compressed, or larger than 4 GB");
      const size_t data = start + 30 + get(file, start + 26, 2) + get(file, start + 28, 2);
      if (data > file.size() || file.size() - data < size) throw Error("it is cut short");
      const std::string content = file.substr(data, size);
      if (detail::crc32(content) != sum) throw Error("its checksum is wrong");
      const bool named = member.size() > 4 && member.substr(member.size() - 4) == ".npy";
      detail::read_npy(named ? member.substr(0, member.size() - 4) : member, content, found);
      at += 46 + name + extra + get(file, at + 32, 2);
    }
    return found;
  } catch (const Error& error) {
    const std::string where = member.empty() ? "" : ", " + member;
    throw Error(path.string() + where + ": " + error.what());
  }
}

// Writes a file that numpy.load reads; what `path` held stays whole until the new one is.
inline void write_npz(const std::filesystem::path& path, const Npz& content) {
  using detail::put;
  std::map<std::string, std::string> files;
  for (const auto& [name, text] : content.texts) {
    std::string wide;
    for (const char character : text) put(wide, static_cast<unsigned char>(character), 4);
    files[name] = detail::npy("<U" + std::to_string(text.size()), {}, wide);
  }
  for (const auto& [name, tensor] : content.arrays) {
    if (!*tensor.dtype->numpy) throw Error(name + ": numpy has no " + tensor.dtype->name);
    const auto* bytes = reinterpret_cast<const char*>(tensor.bytes.data());
    files[name] =
        detail::npy(tensor.dtype->numpy, tensor.shape, std::string(bytes, tensor.bytes.size()));
  }
  std::string archive, directory;
  for (const auto& [name, file] : files) {
    const std::string member = name + ".npy";
    std::string facts;
    put(facts, 0x0800, 2);  // the name is UTF-8
    put(facts, 0, 2);       // stored
    put(facts, 0x00210000, 4);
    put(facts, detail::crc32(file), 4);
    put(facts, file.size(), 4);
    put(facts, file.size(), 4);
    put(facts, member.size(), 2);
    put(facts, 0, 2);
    const uint64_t start = archive.size();
    if (start + file.size() > std::numeric_limits<uint32_t>::max() - 4096)
      throw Error(path.string() + " would be larger than 4 GB");
    put(archive, 0x04034b50, 4);
    put(archive, 20, 2);
    archive += facts + member + file;
    put(directory, 0x02014b50, 4);
    put(directory, 20, 2);
    put(directory, 20, 2);
    directory += facts;
    put(directory, 0, 10 - 2);  // no comment, first disk, no attributes of text
    put(directory, 0, 2);
    put(directory, start, 4);
    directory += member;
  }
  std::string end;
  put(end, 0x06054b50, 4);
  put(end, 0, 4);
  put(end, files.size(), 2);
  put(end, files.size(), 2);
  put(end, directory.size(), 4);
  put(end, archive.size(), 4);
  put(end, 0, 2);
  const std::filesystem::path draft = path.string() + ".draft";
  std::error_code ignored;
  {
    std::ofstream stream(draft, std::ios::binary);
    stream << archive << directory << end;
    stream.close();
    if (!stream) {
      std::filesystem::remove(draft, ignored);
      throw Error(path.string() + " cannot be written");
    }
  }
  std::filesystem::rename(draft, path);
}

}  // namespace intaglio
