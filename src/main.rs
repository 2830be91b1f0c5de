//! The program: everything is in the library, where tests can reach it.

/// Gives back to the system what a burst of connections took, which the C library's keeps.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    granary::cli::main()
}
