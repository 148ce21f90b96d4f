//! The agft-lab program; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    agft_lab::cli::main()
}
