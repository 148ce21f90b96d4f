//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// As asked.
    Ok = 0,
    /// Something failed.
    Failure = 1,
    /// The command line or a file is wrong.
    Usage = 2,
    /// There is no instance of that name.
    NotFound = 3,
    /// The token is missing or wrong.
    NotAllowed = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

const AFTER_HELP: &str = "Without a command it serves.\n\
    Exit codes: 0 as asked, 1 a failure, 2 a wrong command line or file, 3 no such instance, 4 not allowed.";

/// Runs inference servers as configuration: starts, watches, stops and restarts them.
#[derive(Debug, Parser)]
#[command(name = "agft-serve", version, after_help = AFTER_HELP)]
pub struct Cli {
    /// Host of the API that a command asks
    #[arg(long, global = true, value_name = "HOST")]
    pub host: Option<String>,

    /// Port of the API that a command asks; with serve, the port of 127.0.0.1 that it listens at
    #[arg(long, global = true, value_name = "PORT")]
    pub port: Option<u16>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a text here would become the help's")]
    pub serve: ServeArgs,

    #[command(subcommand)]
    #[expect(missing_docs, reason = "a text here would become the help's")]
    pub command: Option<Command>,
}

/// Options of `serve`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct ServeArgs {
    /// Instance file, or directory of them (*.yaml, *.yml); may be repeated [default: /etc/agft/instances]
    #[arg(long, value_name = "PATH", alias = "llamacpp_configs_dir", alias = "llamacpp-configs-dir")]
    pub instances: Vec<PathBuf>,

    /// gppm's config.yaml, for its llamacpp_configs_dir and port; options given here win
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Where the API and the page are served [default: 127.0.0.1:5002]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,

    /// File with the token that changes need; without, one is made in the runtime directory
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Name under which a browser may reach the page, beside localhost and addresses; may be repeated
    #[arg(long, value_name = "NAME")]
    pub allowed_host: Vec<String>,

    /// Directory for the logs of instances [default: /var/log/agft-serve for root]
    #[arg(long, value_name = "DIR")]
    pub log_dir: Option<PathBuf>,

    /// Directory for the token and what is needed until the next start of the host [default: /run/agft-serve
    /// for root]
    #[arg(long, value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,

    /// Directory for what `apply` gave [default: /var/lib/agft-serve for root]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Directory where agft has its control socket, to be told which instances work: its gpu.runtime_dir [default: /run/agft]
    #[arg(long, value_name = "DIR")]
    pub daemon_dir: Option<PathBuf>,
}

/// What is to be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the instances (the default)
    Serve(ServeArgs),
    /// See and change the instances of a running agft-serve
    Instances {
        #[command(subcommand)]
        #[expect(missing_docs, reason = "a text here would become the help's")]
        command: Instances,
    },
    /// gppm's `get`: list instances, their entries or their processes
    Get {
        /// What
        what: Listed,
        #[command(flatten)]
        #[expect(missing_docs, reason = "a text here would become the help's")]
        client: ClientArgs,
    },
    /// gppm's name of `instances enable`
    Enable(NamedArgs),
    /// gppm's name of `instances disable`
    Disable(NamedArgs),
    /// gppm's name of `instances apply`
    Apply(ApplyArgs),
    /// gppm's name of `instances reload`
    #[command(alias = "reload-llamacpp-configs")]
    Reload(ClientArgs),
    /// gppm's old name of `get configs`
    #[command(hide = true)]
    GetLlamacppConfigs(ClientArgs),
    /// gppm's old name of `get instances`
    #[command(hide = true)]
    GetLlamacppInstances(ClientArgs),
    /// Print the completions of a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Has an Ollama server load a model; a hook of instances with `type: ollama`
    #[command(hide = true)]
    OllamaPreload(PreloadArgs),
}

/// Commands of `instances`.
#[derive(Debug, Subcommand)]
pub enum Instances {
    /// List them
    #[command(alias = "list")]
    Ls(ClientArgs),
    /// Show all about one
    Show(NamedArgs),
    /// Have it run
    Enable(NamedArgs),
    /// Have it not run
    Disable(NamedArgs),
    /// Have it run in a new process
    Restart(NamedArgs),
    /// Print its last output
    Logs(LogsArgs),
    /// Read the instance files again
    Reload(ClientArgs),
    /// Add the entries of a file, in the place of those with the same names
    Apply(ApplyArgs),
    /// Take back what `apply` gave under this name
    Rm(NamedArgs),
    /// Check instance files, without a running agft-serve
    Check {
        /// Files or directories
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
    },
    /// Write a systemd unit for each instance, for hosts where PID 1 is to run the servers
    SystemdUnits(UnitsArgs),
}

/// What gppm's `get` lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Listed {
    /// The instances.
    Instances,
    /// Their entries.
    Configs,
    /// Their processes.
    Subprocesses,
}

/// Forms of output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For humans.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Options of all that asks a running agft-serve.
#[derive(Debug, Clone, Default, Args)]
pub struct ClientArgs {
    /// Form of the output
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub format: Format,

    /// File with the token [default: that of an agft-serve of this user on this machine]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// Options of what is about one instance.
#[derive(Debug, Clone, Args)]
pub struct NamedArgs {
    /// Name of the instance
    pub name: String,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a text here would become the help's")]
    pub client: ClientArgs,
}

/// Options of `logs`.
#[derive(Debug, Clone, Args)]
pub struct LogsArgs {
    /// Name of the instance
    pub name: String,

    /// Go on with each new line
    #[arg(short, long)]
    pub follow: bool,

    /// How many of the last lines
    #[arg(short = 'n', long, value_name = "N", default_value = "100")]
    pub lines: u32,

    #[command(flatten)]
    #[expect(missing_docs, reason = "a text here would become the help's")]
    pub client: ClientArgs,
}

/// Options of `apply`.
#[derive(Debug, Clone, Args)]
pub struct ApplyArgs {
    /// Instance file; `-` for standard input
    pub file: PathBuf,
    #[command(flatten)]
    #[expect(missing_docs, reason = "a text here would become the help's")]
    pub client: ClientArgs,
}

/// Options of `systemd-units`.
#[derive(Debug, Clone, Args)]
pub struct UnitsArgs {
    /// Directory to write them to; it must exist
    pub dir: PathBuf,

    /// Instance file, or directory of them; may be repeated [default: /etc/agft/instances]
    #[arg(long, value_name = "PATH")]
    pub instances: Vec<PathBuf>,
}

/// Options of `ollama-preload`.
#[derive(Debug, Clone, Args)]
pub struct PreloadArgs {
    /// Where Ollama listens
    #[arg(long, value_name = "URL")]
    pub server: url::Url,

    /// The model
    #[arg(long)]
    pub model: String,

    /// Options for it, as JSON
    #[arg(long, default_value = "{}")]
    pub options: String,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn gppms_command_lines_are_understood() {
        for line in [
            "x --host localhost --port 5003 get instances --format json",
            "x get configs --format text",
            "x get subprocesses --port 1",
            "x get-llamacpp-configs",
            "x get-llamacpp-instances",
            "x reload-llamacpp-configs",
            "x enable NAME",
            "x disable NAME",
            "x apply FILE --format json",
            "x reload",
            "x --config /etc/gppmd/config.yaml --llamacpp_configs_dir /etc/gppmd/llamacpp_configs --port 5002",
            "x serve --port 5002",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }
}
