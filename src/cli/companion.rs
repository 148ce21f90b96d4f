//! Commands that another program beside this one carries out, so that nothing of it is in the one with the
//! right to lock clocks: the simulator in `agft-lab`, the supervisor of inference servers in `agft-serve`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use clap::Args;

use super::Exit;
use crate::store::trusted_beside;

/// The simulator.
pub(crate) const LAB: &str = "agft-lab";
/// The supervisor.
pub(crate) const SERVE: &str = "agft-serve";

/// What is handed over unread.
#[derive(Debug, Args)]
pub struct Handed {
    /// Commands and options of agft-serve
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    pub arguments: Vec<OsString>,
}

/// Becomes that program, with the arguments of this one; comes back only if that fails.
pub(crate) fn run(name: &str) -> Exit {
    let error = match std::env::current_exe() {
        Ok(own) => execute(name, &own.with_file_name(name), &own),
        Err(error) => format!("cannot tell where {name} is: {error}"),
    };
    complain!("agft: {error}");
    Exit::Failure
}

fn execute(name: &str, program: &Path, own: &Path) -> String {
    let shown = program.display();
    if !program.exists() {
        return format!(
            "{shown} is not there: it carries out this command. In the source tree `cargo build --release` makes it \
             beside agft; `cargo install --path crates/{name}` installs it"
        );
    }
    // Root starts nothing that a stranger could have written.
    if rustix::process::geteuid().is_root()
        && let Err(why) = trusted_beside(program, own)
    {
        return format!("{shown} is not run as root: {why}");
    }
    let error = Command::new(program).args(std::env::args_os().skip(1)).exec();
    format!("cannot run {shown}: {error}")
}
