// Functions of a library that somebody else has loaded, and of those that it was linked with.
#pragma once

namespace hot {

// Null if none of them has it.
void * find_symbol(void * library, const char * name);

}  // namespace hot
