#include "hot/symbols.h"

#include <dlfcn.h>

namespace hot {

void * find_symbol(void * library, const char * name) {
    return dlsym(library, name);
}

}  // namespace hot
