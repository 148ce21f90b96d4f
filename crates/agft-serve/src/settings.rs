//! What the supervisor was told: by options, by gppm's `config.yaml`, or by nobody.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::cli::ServeArgs;
use crate::files::{self, Problems, Surroundings};
use crate::work::link;

/// Where instance files are where nothing is said.
pub const INSTANCES: &str = "/etc/agft/instances";
/// The port of the API, which is gppm's.
pub const PORT: u16 = 5002;
/// The name of the token's file in the runtime directory.
pub const TOKEN: &str = "token";
/// The name of the file that `apply` writes, in the state directory.
pub const APPLIED: &str = "applied.yaml";

/// All that `serve` has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Instance files and directories.
    pub instances: Vec<PathBuf>,
    /// Where the API is.
    pub listen: SocketAddr,
    /// File of the token, where one was given.
    pub token_file: Option<PathBuf>,
    /// Names that a `Host` header may have, beside localhost and addresses.
    pub allowed_hosts: Vec<String>,
    /// Logs of instances.
    pub log_dir: PathBuf,
    /// What lasts until the host starts again.
    pub runtime_dir: PathBuf,
    /// What lasts.
    pub state_dir: PathBuf,
    /// Where daemons have their sockets.
    pub daemon_dir: PathBuf,
    /// What is worth saying about how they came about.
    pub notes: Vec<String>,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// gppm's file.
    #[error(transparent)]
    Config(#[from] Problems),
    /// A directory that nobody named.
    #[error("there is no usual {what} directory for this user: give --{option}")]
    NoDirectory {
        /// Which.
        what: &'static str,
        /// The option for it.
        option: &'static str,
    },
    /// A public address without a token of the operator's.
    #[error(
        "--listen: {0} can be reached from other machines, and whoever may change instances may run any program; \
         give a --token-file of your own, or listen on 127.0.0.1"
    )]
    Public(SocketAddr),
}

impl Settings {
    /// Puts them together; an option wins over gppm's file. `port` is `--port`.
    ///
    /// # Errors
    /// [`SettingsError`]
    pub fn new(args: &ServeArgs, port: Option<u16>, around: &Surroundings) -> Result<Self, SettingsError> {
        let gppm = match &args.config {
            Some(file) => files::read_gppm_config(file, around)?,
            None => files::GppmConfig::default(),
        };
        let given = if args.instances.is_empty() {
            gppm.instances.into_iter().collect()
        } else {
            args.instances.clone()
        };
        let instances = if given.is_empty() { vec![INSTANCES.into()] } else { given };
        let local = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let listen = match (args.listen, port) {
            (Some(listen), None) => listen,
            (Some(listen), Some(port)) => SocketAddr::new(listen.ip(), port),
            (None, port) => local(port.or(gppm.port).unwrap_or(PORT)),
        };
        if !listen.ip().is_loopback() && args.token_file.is_none() {
            return Err(SettingsError::Public(listen));
        }
        let missing = |what, option| SettingsError::NoDirectory { what, option };
        let state_dir = args.state_dir.clone().or_else(usual_state).ok_or(missing("state", "state-dir"))?;
        let log_dir = args.log_dir.clone().or_else(|| of_systemd("LOGS_DIRECTORY"));
        Ok(Self {
            instances,
            listen,
            token_file: args.token_file.clone(),
            allowed_hosts: args.allowed_host.clone(),
            log_dir: log_dir.unwrap_or_else(|| {
                if is_root() { "/var/log/agft-serve".into() } else { state_dir.join("log") }
            }),
            runtime_dir: args
                .runtime_dir
                .clone()
                .or_else(usual_runtime)
                .ok_or(missing("runtime", "runtime-dir"))?,
            state_dir,
            daemon_dir: args.daemon_dir.clone().unwrap_or_else(|| link::DAEMON_DIR.into()),
            notes: gppm.notes,
        })
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn of_systemd(name: &str) -> Option<PathBuf> {
    let dirs = std::env::var(name).ok()?;
    dirs.split(':').next().filter(|dir| Path::new(dir).is_absolute()).map(PathBuf::from)
}

fn of_user(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute())
}

/// The runtime directory where none is given; `None` for a user without a session.
#[must_use]
pub fn usual_runtime() -> Option<PathBuf> {
    let own = || is_root().then(|| PathBuf::from("/run/agft-serve"));
    of_systemd("RUNTIME_DIRECTORY")
        .or_else(own)
        .or_else(|| of_user("XDG_RUNTIME_DIR").map(|dir| dir.join("agft-serve")))
}

fn usual_state() -> Option<PathBuf> {
    let own = || is_root().then(|| PathBuf::from("/var/lib/agft-serve"));
    let home = || of_user("HOME").map(|dir| dir.join(".local/state/agft-serve"));
    of_systemd("STATE_DIRECTORY")
        .or_else(own)
        .or_else(|| of_user("XDG_STATE_HOME").map(|dir| dir.join("agft-serve")))
        .or_else(home)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> ServeArgs {
        ServeArgs {
            runtime_dir: Some("/r".into()),
            state_dir: Some("/s".into()),
            log_dir: Some("/l".into()),
            ..ServeArgs::default()
        }
    }

    fn settings(args: &ServeArgs, port: Option<u16>) -> Result<Settings, SettingsError> {
        Settings::new(args, port, &Surroundings::default())
    }

    #[test]
    fn what_nobody_says_is_loopback_and_the_usual_files() {
        let settings = settings(&args(), None).unwrap();
        assert_eq!(settings.listen.to_string(), "127.0.0.1:5002");
        assert_eq!(settings.instances, [PathBuf::from(INSTANCES)]);
    }

    #[test]
    fn gppms_file_is_used_and_options_win_over_it() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.yaml");
        std::fs::write(
            &config,
            "host: 0.0.0.0\nport: 5010\nllamacpp_configs_dir: /etc/gppmd/llamacpp_configs\n\
             max_llamacpp_instances: 10\nlog_file: /var/log/gppmd/gppmd.log\nsleep_time: 0.1\ntimeout_time: 1\n\
             log_file_to_monitor: x\n",
        )
        .unwrap();
        let with = ServeArgs { config: Some(config.clone()), ..args() };
        let read = settings(&with, None).unwrap();
        assert_eq!(read.listen.to_string(), "127.0.0.1:5010");
        assert_eq!(read.instances, [PathBuf::from("/etc/gppmd/llamacpp_configs")]);
        for key in [
            "host",
            "max_llamacpp_instances",
            "log_file",
            "sleep_time",
            "timeout_time",
            "log_file_to_monitor",
        ] {
            assert_eq!(
                read.notes.iter().filter(|note| note.contains(&format!(" {key} "))).count(),
                1,
                "{key}"
            );
        }
        let over = ServeArgs {
            instances: vec!["/x.yaml".into()],
            listen: Some("[::1]:7".parse().unwrap()),
            ..with.clone()
        };
        let read = settings(&over, None).unwrap();
        assert_eq!(
            (read.listen.to_string().as_str(), &read.instances[..]),
            ("[::1]:7", &["/x.yaml".into()][..])
        );
        assert_eq!(settings(&with, Some(8)).unwrap().listen.to_string(), "127.0.0.1:8");
        std::fs::write(&config, "port: 70000\nprot: 1\n- x").unwrap();
        assert!(settings(&with, None).unwrap_err().to_string().contains("config.yaml:"));
        std::fs::write(&config, "port: 70000\nprot: 1\n").unwrap();
        let message = settings(&with, None).unwrap_err().to_string();
        assert!(message.contains("port is 70000, must be a whole number from 1 to 65535"), "{message}");
        assert!(message.contains("prot is not a known key; did you mean port?"), "{message}");
    }

    #[test]
    fn an_address_that_others_reach_needs_a_token_of_the_operators() {
        let public = ServeArgs { listen: Some("0.0.0.0:5002".parse().unwrap()), ..args() };
        assert!(matches!(settings(&public, None), Err(SettingsError::Public(_))));
        let with = ServeArgs { token_file: Some("/t".into()), ..public };
        assert_eq!(settings(&with, None).unwrap().token_file, Some("/t".into()));
    }
}
