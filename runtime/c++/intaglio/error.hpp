// What goes wrong, in sentences that say where.
#pragma once

#include <stdexcept>
#include <string>

namespace intaglio {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace intaglio
