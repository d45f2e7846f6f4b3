# dots_hot: the hot-expert backend. It links with no ggml: it finds the one that libllama has loaded.
if(WIN32)
  message(STATUS "dots_hot looks libllama's functions up with dlsym: left out on Windows")
  return()
endif()
find_package(Threads REQUIRED)
add_library(dots_hot SHARED
  dots_hot.cpp ggml_calls.cpp hot_buffer.cpp hot_bulk.cpp hot_chain.cpp hot_context.cpp
  hot_costs.cpp hot_divide.cpp hot_experts.cpp hot_memory.cpp hot_model.cpp hot_slab.cpp hot_stream.cpp)
set_target_properties(dots_hot PROPERTIES
  CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON CXX_EXTENSIONS OFF CXX_VISIBILITY_PRESET hidden)
target_compile_options(dots_hot PRIVATE -Wall -Wextra)
target_link_libraries(dots_hot PRIVATE Threads::Threads ${CMAKE_DL_LIBS})
install(TARGETS dots_hot LIBRARY DESTINATION dotscli/lib)
