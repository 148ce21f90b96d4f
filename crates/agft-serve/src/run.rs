//! From the command line to what it asks for.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::api::token::{Token, TokenError};
use crate::api::{self, Access};
use crate::catalog::Catalog;
use crate::cli::{Cli, Command, Exit, Instances, ServeArgs, UnitsArgs};
use crate::client::{self, Server};
use crate::files::{self, Problems, Surroundings};
use crate::fleet::Fleet;
use crate::settings::{APPLIED, INSTANCES, Settings, SettingsError, TOKEN};
use crate::supervise::{self, StartError, Supervisor};
use crate::text::block;
use crate::work::link;
use crate::{ollama, units};

/// So many lines of output are kept in memory for each instance.
const TAIL_LINES: usize = 2000;
/// What an instance's grace may be exceeded by until everything is killed.
const BEYOND_GRACE: Duration = Duration::from_secs(5);

/// Why it does not serve.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Files(#[from] Problems),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl ServeError {
    fn exit(&self) -> Exit {
        match self {
            Self::Settings(_) | Self::Files(_) => Exit::Usage,
            Self::Token(_) | Self::Start(_) | Self::Io(_) => Exit::Failure,
        }
    }
}

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output, and are as asked.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Ok }.into();
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("no threads can be started: {error}"));
            return Exit::Failure.into();
        }
    };
    let exit = runtime.block_on(carry_out(cli));
    // A thread that hangs in the file system does not keep the program.
    runtime.shutdown_background();
    exit.into()
}

/// Says what is wrong, in lines that no terminal obeys.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "agft-serve: {}", block(text));
}

async fn carry_out(cli: Cli) -> Exit {
    let Cli { host, port, serve: args, command } = cli;
    let is_serve = matches!(command, None | Some(Command::Serve(_)));
    if !is_serve && args != ServeArgs::default() {
        complain("options of serve stand before a command that is another; take them out");
        return Exit::Usage;
    }
    if is_serve && host.is_some() {
        complain(
            "--host is for commands that ask a running agft-serve; --listen says where this one is to be",
        );
        return Exit::Usage;
    }
    let server = Server { host, port };
    match command {
        None => serve(&args, port).await,
        Some(Command::Serve(own)) => {
            if args != ServeArgs::default() {
                complain("options of serve stand before and after the word; put them after it");
                return Exit::Usage;
            }
            serve(&own, port).await
        }
        Some(Command::Instances { command: Instances::Check { paths } }) => check(&paths),
        Some(Command::Instances { command: Instances::SystemdUnits(args) }) => write_units(&args),
        Some(Command::Completions { shell }) => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "agft-serve", &mut text);
            // A reader that is gone is no failure.
            let _ = io::stdout().write_all(&text);
            Exit::Ok
        }
        Some(Command::OllamaPreload(args)) => match ollama::preload(&args).await {
            Ok(()) => Exit::Ok,
            Err(error) => {
                complain(&error.to_string());
                Exit::Failure
            }
        },
        Some(command) => client::run(&server, command).await,
    }
}

fn surroundings() -> Result<Surroundings, Exit> {
    Surroundings::of_this_process().map_err(|error| {
        complain(&format!("the system does not tell where this program is: {error}"));
        Exit::Failure
    })
}

fn read_files(paths: &[PathBuf]) -> Result<files::Entries, Exit> {
    let entries = files::read(paths, &surroundings()?).map_err(|problems| {
        complain(&problems.to_string());
        Exit::Usage
    })?;
    for note in &entries.notes {
        complain(&note.to_string());
    }
    Ok(entries)
}

fn check(paths: &[PathBuf]) -> Exit {
    match read_files(paths) {
        Ok(entries) => {
            let _ = writeln!(io::stdout(), "{} instances, nothing wrong", entries.list.len());
            Exit::Ok
        }
        Err(exit) => exit,
    }
}

fn write_units(args: &UnitsArgs) -> Exit {
    let paths = if args.instances.is_empty() { vec![INSTANCES.into()] } else { args.instances.clone() };
    let entries = match read_files(&paths) {
        Ok(entries) => entries,
        Err(exit) => return exit,
    };
    match units::write(&args.dir, &entries.instances()) {
        Ok((written, lost)) => {
            for file in &written {
                let _ = writeln!(io::stdout(), "{}", block(&file.display().to_string()));
            }
            lost.iter().for_each(|lost| complain(lost));
            Exit::Ok
        }
        Err((file, error)) => {
            complain(&format!("{}: {error}", file.display()));
            Exit::Failure
        }
    }
}

async fn serve(args: &ServeArgs, port: Option<u16>) -> Exit {
    let filter = EnvFilter::try_from_env("AGFT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // A second start in one process (tests) keeps the first.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .log_internal_errors(false)
        .try_init();
    match run(args, port).await {
        Ok(exit) => exit,
        Err(error) => {
            complain(&error.to_string());
            error.exit()
        }
    }
}

async fn run(args: &ServeArgs, port: Option<u16>) -> Result<Exit, ServeError> {
    let around = Surroundings::of_this_process()?;
    let settings = Settings::new(args, port, &around)?;
    for note in &settings.notes {
        tracing::warn!("{note}");
    }
    let catalog = Catalog::open(settings.instances, settings.state_dir.join(APPLIED), around)?;
    let token = match &settings.token_file {
        Some(file) => Token::read(file, true)?,
        None => Token::read_or_make(&settings.runtime_dir.join(TOKEN))?,
    };
    // What is wrong with the address shows before a server is started.
    let listener = api::bind(settings.listen).await?;
    let address = listener.local_addr()?;
    let instances = catalog.entries().instances();
    for note in &catalog.entries().notes {
        tracing::warn!("{note}");
    }
    // Signals that come while instances start are not lost.
    let (mut hangup, mut terminate, mut interrupt) =
        (signal(SignalKind::hangup())?, signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let supervisor = Supervisor::start(
        supervise::Settings {
            runtime_dir: settings.runtime_dir,
            log_dir: settings.log_dir,
            tail_lines: TAIL_LINES,
            control_groups: true,
        },
        instances,
    )
    .await?;
    let daemons = link::start(settings.daemon_dir, supervisor.statuses());
    let fleet = Fleet::new(supervisor.clone(), catalog).with_daemons(daemons);
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let access = Access { token, hosts: settings.allowed_hosts };
    let served = tokio::spawn(api::serve(listener, fleet.clone(), access, async move {
        let _ = ended.await;
    }));
    tracing::info!(%address, instances = fleet.statuses().len(), "the page and the API are at http://{address}/");
    loop {
        tokio::select! {
            _ = hangup.recv() => match fleet.reload().await {
                Ok(done) => tracing::info!(
                    started = ?done.started, restarted = ?done.restarted, ended = ?done.ended,
                    "the instance files were read again"
                ),
                Err(error) => tracing::error!("the instance files were not taken, all goes on as before:\n{error}"),
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    let _ = end.send(());
    let _ = served.await;
    let grace = supervisor.instances().iter().map(|instance| instance.stop.grace).sum::<Duration>();
    tracing::info!("ending all instances");
    let orderly = {
        let supervisor = supervisor.clone();
        tokio::spawn(async move { supervisor.shut_down(grace + BEYOND_GRACE).await })
    };
    tokio::pin!(orderly);
    let hung = tokio::select! {
        hung = &mut orderly => hung,
        // Asked again: what is left is killed, and the orderly end so ends at once.
        () = async { tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () } } => {
            supervisor.shut_down(Duration::ZERO).await;
            orderly.await
        }
    }
    .unwrap_or_default();
    if hung.is_empty() {
        return Ok(Exit::Ok);
    }
    tracing::error!(instances = ?hung, "did not end: their processes hang in the kernel");
    Ok(Exit::Failure)
}
