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
                problems.extend(each.map(|vain| Problem::Value {
                    key: format!("{place}.{}", vain.key),
                    value: vain.value,
                    must_be: format!("what can be judged of its engine: {}", vain.why),
                    remedy: Some(REMEDY.to_owned()),
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

/// What to do about something asked in vain.
const REMEDY: &str = "take it out of the file, or set ignore_slo";

/// What a server was told to keep or to pursue, and cannot be judged of its engine.
#[derive(Debug, PartialEq, Eq)]
pub struct Vain {
    key: &'static str,
    value: String,
    why: String,
}

impl Vain {
    /// What is wrong with it at the server of this name.
    #[must_use]
    pub fn of(&self, server: &str) -> String {
        format!("{server}: {} is {}, but {}; {REMEDY}", self.key, self.value, self.why)
    }
}

/// What a server was told in vain. A limit that has its default value was not asked for: it is left out where it cannot
/// be judged.
#[must_use]
pub fn unjudged(engine: &Profile, control: &Control) -> Vec<Vain> {
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
                found.push(Vain { key, value: value.to_string(), why });
            }
        }
        // A percentile of what is told as a mean alone; what is not told at all has been said.
        let percentile = [Limited::Ttft, Limited::Tpot].into_iter().find_map(|limit| {
            engine.unjudged(limit, statistic).filter(|_| engine.unjudged(limit, Statistic::Mean).is_none())
        });
        found.extend(percentile.map(|why| Vain { key: "slo_statistic", value: statistic.to_string(), why }));
    }
    let objective = engine.unreachable(control.objective);
    found.extend(objective.map(|why| Vain { key: "objective", value: control.objective.to_string(), why }));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong with a server that has this beside its name and page.
    fn problems(rest: &str) -> String {
        let text = format!("servers: [{{name: a, metrics_url: \"http://h:1/metrics\", {rest}}}]");
        Config::parse(&text, "c.yaml").err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn engine_has_to_be_known_and_what_is_set_has_to_be_judged_of_it() {
        for engine in engine::all() {
            assert_eq!(problems(&format!("engine: {}", engine.name())), "", "its defaults are not asked for");
        }
        assert_eq!(problems("engine: LLAMA.CPP, tpot_limit: 0.1"), "");
        let unknown = problems("engine: sglong");
        assert!(
            unknown.contains("servers.a.engine is sglong, must be auto, or one of Dynamo, llama.cpp"),
            "{unknown}"
        );
        assert!(unknown.ends_with("write SGLang"), "{unknown}");
        assert!(problems("engine: mine").ends_with("describe another engine in a file of engines.directory"));
        let vain = problems("engine: llama.cpp, ttft_limit: 0.5, slo_statistic: p95");
        for part in [
            "servers.a.ttft_limit is 0.500 s, must be what can be judged of its engine: llama.cpp tells no time to first",
            "servers.a.slo_statistic is p95, must be",
            "no p95; take it out of the file, or set ignore_slo",
        ] {
            assert!(vain.contains(part), "{part:?} in {vain}");
        }
        assert_eq!(problems("engine: llama.cpp, ttft_limit: 0.5, slo_statistic: p95, ignore_slo: true"), "");
    }

    #[test]
    fn directory_is_read_with_the_file_and_its_errors_are_the_file_s() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        let text = format!(
            "engines: {{directory: {:?}}}\nservers: [{{name: a, metrics_url: \"http://h:1/metrics\", engine: Mine}}]",
            dir.path()
        );
        std::fs::write(&path, &text).unwrap();
        assert!(Config::parse(&text, "c.yaml").is_ok(), "what the files have is not known yet");
        let error = Config::load(&path).unwrap_err().to_string();
        assert!(error.contains("servers.a.engine is Mine, must be auto"), "{error}");
        let file = dir.path().join("mine.toml");
        let profile = "name = \"mine\"\nrecognise = { prefixes = [\"m_\"] }\nsignals = { running = { names = [\"r\"] } }";
        std::fs::write(&file, format!("{profile}\nspeed = 1")).unwrap();
        let error = Config::load(&path).unwrap_err().to_string();
        assert!(error.contains("mine.toml: speed is not a known key"), "{error}");
        std::fs::write(&file, profile).unwrap();
        // It tells requests alone, so nothing but energy can be pursued.
        let error = Config::load(&path).unwrap_err().to_string();
        assert!(error.contains("servers.a.objective is edp"), "{error}");
        std::fs::write(&path, text.replace("engine: Mine", "engine: Mine, objective: energy")).unwrap();
        let loaded = Config::load(&path).unwrap();
        assert_eq!(loaded.engines.iter().map(Profile::name).collect::<Vec<_>>(), ["mine"]);
    }
}
