//! The commands that ask a running agft-serve.

mod ask;
mod table;

use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;

use hyper::{Method, StatusCode};
use serde_json::Value;

use crate::cli::{ApplyArgs, ClientArgs, Command, Exit, Format, Instances, Listed, LogsArgs, NamedArgs};
use crate::run::complain;
use crate::text::block;
pub use ask::Server;
use ask::{Caller, ClientError};

/// Longest file that is sent, in bytes.
const MOST_BYTES: u64 = 1 << 20;

/// Carries out a command.
pub async fn run(server: &Server, command: Command) -> Exit {
    let done = match command {
        Command::Instances { command } => instances(server, command).await,
        Command::Get { what, client } => get(server, what, &client).await,
        Command::Enable(args) => act(server, &args, Method::POST, "/enable").await,
        Command::Disable(args) => act(server, &args, Method::POST, "/disable").await,
        Command::Apply(args) => apply(server, &args).await,
        Command::Reload(client) => reload(server, &client).await,
        Command::GetLlamacppConfigs(client) => get(server, Listed::Configs, &client).await,
        Command::GetLlamacppInstances(client) => get(server, Listed::Instances, &client).await,
        Command::Serve(_) | Command::Completions { .. } | Command::OllamaPreload(_) => Ok(()),
    };
    match done {
        Ok(()) => Exit::Ok,
        Err(error) => {
            complain(&error.to_string());
            error.exit()
        }
    }
}

async fn instances(server: &Server, command: Instances) -> Result<(), ClientError> {
    match command {
        Instances::Ls(client) => get(server, Listed::Instances, &client).await,
        Instances::Show(args) => show(server, &args).await,
        Instances::Enable(args) => act(server, &args, Method::POST, "/enable").await,
        Instances::Disable(args) => act(server, &args, Method::POST, "/disable").await,
        Instances::Restart(args) => act(server, &args, Method::POST, "/restart").await,
        Instances::Rm(args) => act(server, &args, Method::DELETE, "").await,
        Instances::Logs(args) => logs(server, &args).await,
        Instances::Reload(client) => reload(server, &client).await,
        Instances::Apply(args) => apply(server, &args).await,
        Instances::Check { .. } | Instances::SystemdUnits(_) => Ok(()),
    }
}

/// A reader that is gone is no failure.
fn say(text: &str) {
    let _ = io::stdout().write_all(block(text).as_bytes());
}

fn say_json(value: &Value) {
    say(&format!("{}\n", serde_json::to_string_pretty(value).unwrap_or_default()));
}

async fn get(server: &Server, what: Listed, client: &ClientArgs) -> Result<(), ClientError> {
    // Whoever has the token sees the values of env.
    let caller = Caller::new(server, client, false)?;
    let path = match what {
        Listed::Instances => "/v1/instances",
        Listed::Configs => "/get_llamacpp_configs",
        Listed::Subprocesses => "/get_llamacpp_subprocesses",
    };
    let answer = caller.ask(Method::GET, path, None).await?;
    match (client.format, what) {
        (Format::Json, _) | (_, Listed::Configs) => say_json(&answer),
        (Format::Text, Listed::Instances) => say(&table::instances(&answer)),
        (Format::Text, Listed::Subprocesses) => say(&table::processes(&answer)),
    }
    Ok(())
}

async fn show(server: &Server, args: &NamedArgs) -> Result<(), ClientError> {
    let caller = Caller::new(server, &args.client, false)?;
    let answer = caller.ask(Method::GET, &instance_path(&args.name, ""), None).await?;
    match args.client.format {
        Format::Json => say_json(&answer),
        Format::Text => say(&table::one(&answer)),
    }
    Ok(())
}

fn instance_path(name: &str, rest: &str) -> String {
    // A name may have blanks and other marks.
    let name: String =
        url::form_urlencoded::byte_serialize(name.as_bytes()).collect::<String>().replace('+', "%20");
    format!("/v1/instances/{name}{rest}")
}

async fn act(server: &Server, args: &NamedArgs, method: Method, rest: &str) -> Result<(), ClientError> {
    let caller = Caller::new(server, &args.client, true)?;
    let answer = caller.ask(method, &instance_path(&args.name, rest), None).await?;
    match (args.client.format, answer.get("state")) {
        (Format::Json, _) => say_json(&answer),
        (Format::Text, Some(_)) => say(&table::one(&answer)),
        (Format::Text, None) => say(&table::changes(&answer)),
    }
    Ok(())
}

fn say_changes(client: &ClientArgs, answer: &Value) {
    match client.format {
        Format::Json => say_json(answer),
        Format::Text => say(&table::changes(answer)),
    }
}

async fn reload(server: &Server, client: &ClientArgs) -> Result<(), ClientError> {
    let caller = Caller::new(server, client, true)?;
    let answer = caller.ask(Method::POST, "/v1/reload", None).await?;
    say_changes(client, &answer);
    Ok(())
}

async fn apply(server: &Server, args: &ApplyArgs) -> Result<(), ClientError> {
    let text = read(&args.file).map_err(|source| ClientError::File { file: args.file.clone(), source })?;
    let caller = Caller::new(server, &args.client, true)?;
    let answer = caller.ask(Method::POST, "/v1/instances", Some(("application/yaml", text))).await?;
    say_changes(&args.client, &answer);
    Ok(())
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        io::stdin().take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    } else {
        std::fs::File::open(file)?.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    }
    if bytes.len() as u64 > MOST_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "is larger than 1024 KiB"));
    }
    Ok(bytes)
}

async fn logs(server: &Server, args: &LogsArgs) -> Result<(), ClientError> {
    let caller = Caller::new(server, &args.client, false)?;
    let path = instance_path(&args.name, &format!("/logs?lines={}&follow={}", args.lines, args.follow));
    let mut lines = caller.lines(&path).await?;
    let terminal = io::stdout().is_terminal();
    while let Some(line) = lines.next().await? {
        let text = match args.client.format {
            Format::Json => format!("{line}\n"),
            Format::Text => table::log_line(&line),
        };
        let mut out = io::stdout();
        let written = out.write_all(block(&text).as_bytes());
        // A pipe whose reader is gone ends it; a terminal that is slow does not.
        if written.and_then(|()| out.flush()).is_err() && !terminal {
            break;
        }
    }
    Ok(())
}

/// What a status that is no success means.
fn exit_of(status: StatusCode) -> Exit {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::MISDIRECTED_REQUEST => {
            Exit::NotAllowed
        }
        StatusCode::NOT_FOUND => Exit::NotFound,
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY | StatusCode::PAYLOAD_TOO_LARGE => {
            Exit::Usage
        }
        _ => Exit::Failure,
    }
}
