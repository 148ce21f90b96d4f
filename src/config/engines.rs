//! The engines that a configuration names: their files, and whether they can do what is asked of them.

use std::path::Path;

use super::choices::EngineKind;
use super::error::{ConfigError, Problem};
use super::rule::likeness;
use super::{Config, Control, Loaded, Servers};
use crate::engine::{self, Profile};
use crate::reward::slo::{Limited, Statistic};

/// Reads the directory of profiles of a configuration; a process that `obeys` them does what they say.
/// Errors: All that is wrong with its files, or what the configuration asks of the engines in vain
pub(super) fn load(mut loaded: Loaded, file: &str, obeys: bool) -> Result<Loaded, ConfigError> {
    let Some(dir) = &loaded.config.engines.directory else { return Ok(loaded) };
    loaded.engines =
        engine::load_dir(Path::new(dir), obeys).map_err(|errors| ConfigError::Engines { errors })?;
    let problems = check(&loaded.config, &loaded.engines);
    if problems.is_empty() {
        Ok(loaded)
    } else {
        Err(ConfigError::Invalid { file: file.to_owned(), problems })
    }
}

/// What servers ask in vain of the engines that they name, with these profiles beside those in force.
pub(super) fn check(config: &Config, own: &[Profile]) -> Vec<Problem> {
    let Servers::List(servers) = &config.servers else { return Vec::new() };
    let mut problems = Vec::new();
    for server in servers {
        let EngineKind::Named(name) = &server.engine else { continue };
        let place = format!("servers.{}", server.name);
        let found = known(own).find(|engine| engine.name().eq_ignore_ascii_case(name));
        match found {
            Some(engine) => {
                let each = unjudged(engine, &server.config.control).into_iter();
                problems.extend(each.map(|(key, value, why)| Problem::Value {
                    key: format!("{place}.{key}"),
                    value,
                    must_be: format!("what can be judged of this engine: {why}"),
                    remedy: Some("take it out of the file".to_owned()),
                }));
            }
            None => problems.push(unknown(format!("{place}.engine"), name, own)),
        }
    }
    problems
}

/// These profiles, and those in force. The annotation shortens the lifetime of the latter.
fn known(own: &[Profile]) -> impl Iterator<Item = &Profile> {
    own.iter().chain(engine::all().map(|engine: &Profile| engine))
}

fn unknown(key: String, name: &str, own: &[Profile]) -> Problem {
    let mut names: Vec<&str> = known(own).map(Profile::name).collect();
    names.sort_by_key(|name| name.to_ascii_lowercase());
    names.dedup();
    let like = |other: &str| likeness(&name.to_ascii_lowercase(), &other.to_ascii_lowercase());
    let nearest = names.iter().copied().max_by(|a, b| like(a).total_cmp(&like(b)));
    let remedy = match nearest.filter(|nearest| like(nearest) > 0.6) {
        Some(nearest) => format!("write {nearest}"),
        None => "describe another engine in a file of engines.directory".to_owned(),
    };
    let must_be = format!("auto, or one of {}", names.join(", "));
    Problem::Value { key, value: name.to_owned(), must_be, remedy: Some(remedy) }
}

/// What a server was told to keep or to pursue that cannot be judged of its engine: key, value, and why not.
///
/// A limit that has its default value was not asked for: it is left out where it cannot be judged.
pub(crate) fn unjudged(engine: &Profile, control: &Control) -> Vec<(&'static str, String, String)> {
    let default = Control::default();
    let mut found = Vec::new();
    if !control.ignore_slo {
        let statistic = control.slo_statistic;
        let limits = [
            ("ttft_limit", Limited::Ttft, control.ttft_limit, default.ttft_limit),
            ("tpot_limit", Limited::Tpot, control.tpot_limit, default.tpot_limit),
        ];
        for (key, limit, value, usual) in limits {
            if value != usual
                && let Some(why) = engine.unjudged(limit, Statistic::Mean)
            {
                found.push((key, value.to_string(), why));
            }
        }
        // A percentile of what is told as a mean alone; what is not told at all has been said.
        let percentile = [Limited::Ttft, Limited::Tpot].into_iter().find_map(|limit| {
            engine.unjudged(limit, statistic).filter(|_| engine.unjudged(limit, Statistic::Mean).is_none())
        });
        if let Some(why) = percentile {
            found.push(("slo_statistic", statistic.to_string(), why));
        }
    }
    if let Some(why) = engine.unreachable(control.objective) {
        found.push(("objective", control.objective.to_string(), why));
    }
    found
}
