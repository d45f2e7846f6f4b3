// Memory that experts come into and go from: addresses for all of them, pages for those that are there.
//
// An expert keeps its address, so whoever computes with it finds it where llama.cpp put its tensor.
// Bytes that were given back read as zeros. This file knows neither experts nor files.
#pragma once

#include <cstddef>
#include <vector>

namespace hot {

class reserved_memory {
  public:
    reserved_memory() = default;
    ~reserved_memory();
    reserved_memory(const reserved_memory &) = delete;
    reserved_memory & operator=(const reserved_memory &) = delete;

    // Addresses that begin with a page; null if the system doesn't give so many.
    char * reserve(size_t nbytes);
    // Whether so many pieces can be moved one by one: each is a mapping, of which there is a limit.
    void   allow_moves(size_t n_pieces);

    // Whole pages, all of them. False: there is no memory for them. Only Windows has to be asked.
    bool use(char * at, size_t nbytes);
    void give_back(char * at, size_t nbytes);
    // The pages of one piece become those of another, whose own are given back. Cheaper than new pages,
    // which the kernel fills with zeros. False: they stay where they are.
    bool move(char * from, char * to, size_t nbytes);

  private:
    struct range {
        char * at;
        size_t nbytes;
    };
    std::vector<range> ranges_;
    bool               may_move_ = false;
};

}  // namespace hot
