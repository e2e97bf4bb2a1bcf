# cmake --install: the programs, the client library with its headers, and find_package(LatticeKV) with LatticeKV::client.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

# The project's own targets that `target` needs, itself included, in `out`.
function(latticekv_own_targets target out)
  set(found ${${out}})
  if(NOT TARGET ${target})
    return()
  endif()
  get_target_property(imported ${target} IMPORTED)
  if(imported OR target IN_LIST found)
    return()
  endif()
  list(APPEND found ${target})
  foreach(property LINK_LIBRARIES INTERFACE_LINK_LIBRARIES)
    get_target_property(needed ${target} ${property})
    foreach(item IN LISTS needed)
      string(REGEX REPLACE "^\\$<LINK_ONLY:(.*)>$" "\\1" item "${item}")
      latticekv_own_targets("${item}" found)
    endforeach()
  endforeach()
  set(${out} ${found} PARENT_SCOPE)
endfunction()

set(client_targets "")
latticekv_own_targets(latticekv_client client_targets)
set_target_properties(latticekv_client PROPERTIES EXPORT_NAME client)
# Core's headers are not for direct use: out of the way, below the library's own folder.
install(TARGETS ${client_targets} EXPORT LatticeKVTargets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} ${CMAKE_INSTALL_INCLUDEDIR}/latticekv/internal)
install(TARGETS latticekv latticekvd RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY client/include/latticekv DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
install(DIRECTORY client/mocks DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/latticekv FILES_MATCHING PATTERN "*.h")
foreach(layer base layout codec)
  file(GLOB headers CONFIGURE_DEPENDS core/${layer}/*.h)
  install(FILES ${headers} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/latticekv/internal/core/${layer})
endforeach()

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/LatticeKV)
install(EXPORT LatticeKVTargets NAMESPACE LatticeKV:: DESTINATION ${package_dir})
configure_package_config_file(cmake/LatticeKVConfig.cmake.in ${CMAKE_BINARY_DIR}/LatticeKVConfig.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${CMAKE_BINARY_DIR}/LatticeKVConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/LatticeKVConfig.cmake ${CMAKE_BINARY_DIR}/LatticeKVConfigVersion.cmake
  DESTINATION ${package_dir})
