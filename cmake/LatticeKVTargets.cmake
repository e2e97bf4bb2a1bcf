# Compile options shared by every target of the project.
add_library(latticekv_options INTERFACE)
target_include_directories(latticekv_options INTERFACE $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}>)
# No contraction: the codec's floating-point steps are part of its bitstream (docs/format/frame.md).
# -Wno-restrict: gcc 12 warns of std::string assignments that are right (GCC bug 105651).
target_compile_options(latticekv_options INTERFACE
  $<BUILD_INTERFACE:-Wall;-Wextra;-Wno-unused-parameter;-Wno-missing-field-initializers;-Wno-restrict;-ffp-contract=off>)
if(LATTICEKV_WERROR)
  target_compile_options(latticekv_options INTERFACE $<BUILD_INTERFACE:-Werror>)
endif()
if(LATTICEKV_SANITIZE)
  # gcc's overflow warnings see ghosts in instrumented std::vector code; the sanitizers see better.
  target_compile_options(latticekv_options INTERFACE
    $<BUILD_INTERFACE:-Wno-stringop-overflow;-Wno-array-bounds;-Wno-maybe-uninitialized>)
endif()
if(LATTICEKV_LIBFUZZER)
  if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    message(FATAL_ERROR "LATTICEKV_LIBFUZZER needs clang: -DCMAKE_CXX_COMPILER=clang++")
  endif()
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()
if(LATTICEKV_SANITIZE STREQUAL "address")
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
elseif(LATTICEKV_SANITIZE STREQUAL "thread")
  add_compile_options(-fsanitize=thread -fno-omit-frame-pointer)
  add_link_options(-fsanitize=thread)
elseif(NOT LATTICEKV_SANITIZE STREQUAL "")
  message(FATAL_ERROR "LATTICEKV_SANITIZE must be empty, 'address' or 'thread', not '${LATTICEKV_SANITIZE}'")
endif()

# latticekv_library(NAME SOURCES... [DEPS...]): one static library of a layer.
function(latticekv_library NAME)
  cmake_parse_arguments(A "" "" "SOURCES;DEPS" ${ARGN})
  add_library(${NAME} STATIC ${A_SOURCES})
  target_link_libraries(${NAME} PUBLIC ${A_DEPS} PRIVATE latticekv_options)
  target_include_directories(${NAME} PUBLIC $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}>)
endfunction()

# latticekv_test(NAME LABEL label SOURCES... DEPS...): one GoogleTest program, one ctest test.
function(latticekv_test NAME)
  cmake_parse_arguments(A "" "LABEL;TIMEOUT" "SOURCES;DEPS" ${ARGN})
  if(NOT A_TIMEOUT)
    # Under ThreadSanitizer on a busy machine the property test of the disk tier takes over 200 s.
    set(A_TIMEOUT 900)
  endif()
  add_executable(${NAME} ${A_SOURCES})
  target_link_libraries(${NAME} PRIVATE ${A_DEPS} latticekv_options GTest::gtest GTest::gmock GTest::gtest_main)
  # Only where it is read: a path of this checkout in every command would keep ccache from sharing between checkouts.
  foreach(source ${A_SOURCES})
    file(STRINGS ${source} reads_it REGEX LATTICEKV_SOURCE_DIR LIMIT_COUNT 1)
    if(reads_it)
      set_source_files_properties(${source} PROPERTIES COMPILE_DEFINITIONS LATTICEKV_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
    endif()
  endforeach()
  add_test(NAME ${NAME} COMMAND ${NAME})
  set_tests_properties(${NAME} PROPERTIES LABELS ${A_LABEL} TIMEOUT ${A_TIMEOUT})
endfunction()
